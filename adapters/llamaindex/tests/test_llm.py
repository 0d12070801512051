"""The eight leaves of LLM classes that know nothing of OpenAI."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from llama_index.core.base.llms.types import ImageBlock, LLMMetadata, TextBlock, ToolCallBlock
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse, MockLLM
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.llms.mock import MockFunctionCallingLLM, MockLLMWithChatMemoryOfLastCall
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool

import aios_adapters as aios
from aios_adapters.hookspecs import hookimpl
from aios_adapters.testing import KernelHandle
from aios_kernel.errors import Unsupported
from aios_kernel.syscalls import LlmChat


class Spy:
    """Records the chats on their way to the kernel."""

    def __init__(self) -> None:
        self.calls: list[LlmChat] = []

    @hookimpl
    def aios_llm_request(self, agent: str, framework: str, call: LlmChat) -> None:
        self.calls.append(call)


@pytest.fixture
def spy() -> Any:
    spy = Spy()
    aios.host().register(spy)
    yield spy
    aios.host().unregister(spy)


def said(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


async def every_leaf(llm: Any) -> dict[str, Any]:
    return {
        "chat": llm.chat(said("say a b")),
        "complete": llm.complete("say a b"),
        "stream_chat": list(llm.stream_chat(said("say a b"))),
        "stream_complete": list(llm.stream_complete("say a b")),
        "achat": await llm.achat(said("say a b")),
        "acomplete": await llm.acomplete("say a b"),
        "astream_chat": [piece async for piece in await llm.astream_chat(said("say a b"))],
        "astream_complete": [piece async for piece in await llm.astream_complete("say a b")],
    }


async def test_all_leaves_reach_the_kernel_once(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="leaves")
    async def run() -> dict[str, Any]:
        return await every_leaf(MockLLM())

    got = await run()
    for name, answer in got.items():
        kind = ChatResponse if "chat" in name else CompletionResponse
        last = answer[-1] if isinstance(answer, list) else answer
        assert isinstance(last, kind), name
        assert str(last).removeprefix("assistant: ") == "a b", name
        assert last.raw["model"] == "fake"
        assert last.raw["finish_reason"] == "stop"
        assert last.additional_kwargs["completion_tokens"] == last.raw["usage"]["completion_tokens"] > 0
        if isinstance(answer, list):
            assert "".join(piece.delta for piece in answer) == "a b", name
            assert len(answer) > 2, "word by word"
    assert [(row.framework, row.llm_calls) for row in fake_kernel.ps()] == [("llamaindex", 8)]


async def test_a_class_made_later_is_caught(fake_kernel: KernelHandle) -> None:
    class LateLLM(MockLLM):
        def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
            return CompletionResponse(text="my own")

    llm = LateLLM()
    with aios.running("late"):
        assert llm.complete("say hello").text == "hello"
    assert llm.complete("say hello").text == "my own"


async def test_outside_a_scope_the_original_answers(fake_kernel: KernelHandle) -> None:
    got = await every_leaf(MockLLM(max_tokens=3))
    assert str(got["complete"]) == "text text text"
    assert fake_kernel.ps() == []


def test_an_override_that_calls_super_still_runs(fake_kernel: KernelHandle) -> None:
    llm = MockLLMWithChatMemoryOfLastCall()
    with aios.running("super"):
        assert llm.chat(said("say once")).message.content == "once"
        assert next(llm.stream_chat(said("say once"))).delta == "once"
    assert llm.last_called_chat_function == ["chat", "stream_chat"]
    assert fake_kernel.ps()[0].llm_calls == 2


def test_an_llm_around_another_delegates_to_it(fake_kernel: KernelHandle) -> None:
    class Shouting(MockLLM):
        inner: Any = None

        @llm_chat_callback()
        def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
            response = self.inner.chat(messages)
            return ChatResponse(message=ChatMessage(role="assistant", content=response.message.content.upper()))

    llm = Shouting()
    llm.inner = MockLLM()
    with aios.running("shouting"):
        assert llm.chat(said("say hello")).message.content == "HELLO"
    assert fake_kernel.ps()[0].llm_calls == 1


def test_options_of_the_object_and_of_the_call(fake_kernel: KernelHandle, spy: Spy) -> None:
    class Tuned(MockLLM):
        model: str = "tuned-7b"
        temperature: float = 0.5
        additional_kwargs: dict[str, Any] = {"seed": 7, "top_p": 0.9}

    with aios.running("tuned"):
        answer = Tuned(max_tokens=2).chat(said("say one two three"), temperature=0.25, stop=["x"])
        assert answer.message.content == "one two"
        assert answer.raw["finish_reason"] == "length"
        assert MockLLM().complete("say one two three", stop="two").text == "one "
    sampling = spy.calls[0].sampling
    assert spy.calls[0].model == "tuned-7b"
    assert (sampling.temperature, sampling.seed, sampling.top_p, sampling.max_tokens) == (0.25, 7, 0.9, 2)
    assert sampling.stop == ["x"]


def test_logprobs(fake_kernel: KernelHandle) -> None:
    with aios.running("logprobs"):
        answer = MockLLM().chat(said("say one two"), logprobs=True, top_logprobs=2)
        pieces = list(MockLLM().stream_chat(said("say one two"), logprobs=True))
    assert answer.logprobs is not None
    assert [token[0].token for token in answer.logprobs] == ["one", " two"]
    assert all(token[0].bytes == list(token[0].token.encode()) for token in answer.logprobs)
    assert pieces[0].logprobs


def test_messages_reach_the_model_in_full(fake_kernel: KernelHandle, spy: Spy) -> None:
    call = ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={"a": 1})
    legacy = {"id": "c2", "type": "function", "function": {"name": "sub", "arguments": '{"a": 2}'}}
    history = [
        ChatMessage(role="developer", content="be brief"),
        ChatMessage(role="user", blocks=[TextBlock(text="one"), TextBlock(text="two")]),
        ChatMessage(role="assistant", blocks=[TextBlock(text="calling"), call]),
        ChatMessage(role="tool", content="2", additional_kwargs={"tool_call_id": "c1"}),
        ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [legacy]}),
        ChatMessage(role="tool", content="1", additional_kwargs={"tool_call_id": "c2"}),
    ]
    with aios.running("full"):
        assert MockLLM().chat(history).message.content == "tool said: 1"
    got = spy.calls[0].messages
    assert [(m.role, m.content, m.name) for m in got] == [
        ("system", "be brief", None),
        ("user", "one\ntwo", None),
        ("assistant", "calling", None),
        ("tool", "2", "add"),
        ("assistant", "", None),
        ("tool", "1", "sub"),
    ]
    assert [(c.id, c.name, c.arguments) for m in got for c in m.tool_calls] == [
        ("c1", "add", '{"a":1}'),
        ("c2", "sub", '{"a": 2}'),
    ]


def test_an_image_is_refused_by_name(fake_kernel: KernelHandle) -> None:
    message = ChatMessage(role="user", blocks=[ImageBlock(image=b"aGk=", image_mimetype="image/png")])
    with aios.running("image"), pytest.raises(Unsupported, match="image"):
        MockLLM().chat([message])


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},
        {"type": "function", "name": "add", "parameters": {"type": "object"}},
        {"name": "add", "description": "", "input_schema": {"type": "object"}},
    ],
    ids=["chat completions", "responses", "anthropic"],
)
def test_tools_in_the_spellings_of_integrations(fake_kernel: KernelHandle, spy: Spy, tool: dict[str, Any]) -> None:
    with aios.running("tools"):
        answer = MockLLM().chat(said('call add {"a": 1}'), tools=[tool], tool_choice={"type": "any"})
    assert [block.tool_kwargs for block in answer.message.blocks if isinstance(block, ToolCallBlock)] == [{"a": 1}]
    assert spy.calls[0].tool_choice == "required"
    assert spy.calls[0].tools[0].parameters == {"type": "object"}


def test_a_tool_of_unknown_form_is_refused(fake_kernel: KernelHandle) -> None:
    with aios.running("odd"), pytest.raises(Unsupported, match="googleSearch"):
        MockLLM().chat(said("x"), tools=[{"googleSearch": {}}])


def test_function_calling_llm_with_framework_tools(fake_kernel: KernelHandle) -> None:
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    llm = MockFunctionCallingLLM()
    tool = FunctionTool.from_defaults(add)
    text = 'call add {"a": 1, "b": 2}\ncall add {"a": 3, "b": 4}'
    with aios.running("functions"):
        whole = llm.chat_with_tools([tool], user_msg=text, allow_parallel_tool_calls=True)
        *_, last = llm.stream_chat_with_tools([tool], user_msg=text)
        output = llm.predict_and_call([tool], user_msg=text, allow_parallel_tool_calls=True)
    for answer in (whole, last):
        calls = llm.get_tool_calls_from_response(answer)
        assert [call.tool_kwargs for call in calls] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    assert output.response == "3\n\n7"
    assert fake_kernel.ps()[0].tool_calls == 2


class City(BaseModel):
    """A city."""

    name: str
    people: int


def test_structured_predict_by_text(fake_kernel: KernelHandle) -> None:
    prompt = PromptTemplate("json {city}")
    with aios.running("structured"):
        assert MockLLM().structured_predict(City, prompt, city='{"name": "Ulm", "people": 3}') == City(
            name="Ulm", people=3
        )


@pytest.mark.parametrize("form", ["response_format", "format", "class"])
def test_a_schema_binds_the_answer(fake_kernel: KernelHandle, form: str) -> None:
    schema = City.model_json_schema()
    kwargs: dict[str, Any] = {
        "response_format": {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}},
        "format": {"format": schema},
        "class": {"response_format": City},
    }[form]
    with aios.running("schema"):
        answer = MockLLM().chat(said("which city?"), **kwargs)
    assert City.model_validate_json(answer.message.content or "") == City(name="text", people=1)


async def test_cancelling_a_task_stops_the_generation(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="cancelled")
    async def run() -> None:
        await MockLLM().achat(said("ponder"))

    task = asyncio.create_task(run())
    assert await asyncio.to_thread(fake_kernel.wait_for, lambda: any(r.state == "running" for r in fake_kernel.ps()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fake_kernel.wait_for(lambda: fake_kernel.ps()[0].state == "finished")
    assert [span.outcome for span in fake_kernel.spans() if span.syscall == "llm.chat"] == ["cancelled"]


async def test_closing_a_stream_stops_the_generation(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="closer")
    async def run() -> None:
        stream = MockLLM().stream_chat(said("ponder"))
        next(stream)
        stream.close()
        astream = await MockLLM().astream_chat(said("ponder"))
        await anext(astream)
        await astream.aclose()
        ended = ["cancelled", "cancelled"]
        done = await asyncio.to_thread(fake_kernel.wait_for, lambda: outcomes(fake_kernel) == ended)
        assert done, outcomes(fake_kernel)

    await run()


def outcomes(kernel: KernelHandle) -> list[str]:
    return [span.outcome for span in kernel.spans() if span.syscall == "llm.chat"]


def test_the_frameworks_callbacks_and_events_still_fire(fake_kernel: KernelHandle) -> None:
    seen: list[str] = []

    class Events(BaseEventHandler):
        def handle(self, event: Any, **kwargs: Any) -> None:
            seen.append(event.class_name())

    counter = TokenCountingHandler()
    dispatcher = get_dispatcher()
    handler = Events()
    dispatcher.add_event_handler(handler)
    try:
        with aios.running("observed"):
            answer = MockLLM(callback_manager=CallbackManager([counter])).chat(said("say a b"))
    finally:
        dispatcher.event_handlers.remove(handler)
    assert seen == ["LLMChatStartEvent", "LLMChatEndEvent"]
    assert counter.prompt_llm_token_count == answer.raw["usage"]["prompt_tokens"]


def test_a_rate_limiter_is_asked(fake_kernel: KernelHandle) -> None:
    class Limiter:
        asked = 0

        def acquire(self) -> None:
            self.asked += 1

    llm = MockLLM()
    llm.rate_limiter = Limiter()
    with aios.running("limited"):
        llm.complete("x")
    assert llm.rate_limiter.asked == 1


def test_metadata_is_untouched(fake_kernel: KernelHandle) -> None:
    with aios.running("meta"):
        assert MockLLM(max_tokens=5).metadata == LLMMetadata(num_output=5)


def test_patches_are_undone(fake_kernel: KernelHandle) -> None:
    try:
        aios.host().deactivate()
        assert not hasattr(MockLLM.chat, "__aios_original__")
        llm = MockLLM()
        # `running` would activate the host again.
        assert llm.complete("say x").text == "say x"
    finally:
        aios.host().activate()
    with aios.running("again"):
        assert llm.complete("say x").text == "x"


def test_an_override_that_uses_super_for_something_else_is_replaced(fake_kernel: KernelHandle) -> None:
    class Direct(MockLLM):
        def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
            return CompletionResponse(text=str(super().to_payload()))

    with aios.running("direct"):
        assert Direct().complete("say from the kernel").text == "from the kernel"
