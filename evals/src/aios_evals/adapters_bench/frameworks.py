"""The calls of each framework: its own types on both sides, a stub of its model client outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aios_evals.adapters_bench.measure import Case, Hooked

ASKED = "say all right"
ANSWER = "all right"
Cases = tuple[list[Case], list[Hooked]]


def _add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def _aadd(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def langchain() -> Cases:
    """`ChatOpenAI` and a `StructuredTool`."""
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, ChatResult
    from langchain_core.tools import StructuredTool
    from langchain_openai import ChatOpenAI

    answer = ChatResult(generations=[ChatGeneration(message=AIMessage(ANSWER))])

    class Stub(GenericFakeChatModel):
        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            return answer

        async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
            return answer

    model, stub = ChatOpenAI(model="gpt-4o"), Stub(messages=iter(()))
    plain = StructuredTool.from_function(_add, coroutine=_aadd, name="add")
    arguments = {"a": 1, "b": 2}
    cases = [
        Case("llm", "sync", lambda: model.invoke(ASKED), lambda: stub.invoke(ASKED), _has_text),
        Case("llm", "async", lambda: model.ainvoke(ASKED), lambda: stub.ainvoke(ASKED), _has_text),
        Case("tool", "sync", lambda: plain.invoke(arguments), lambda: plain.invoke(arguments), _is_three),
        Case("tool", "async", lambda: plain.ainvoke(arguments), lambda: plain.ainvoke(arguments), _is_three),
    ]
    return cases, [_hooked("BaseChatModel._generate", stub, "_generate", [])]


def autogen() -> Cases:
    """`OpenAIChatCompletionClient` and a `FunctionTool`."""
    from autogen_core import CancellationToken
    from autogen_core.models import CreateResult, RequestUsage, UserMessage
    from autogen_core.tools import FunctionTool
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    answer = CreateResult(
        finish_reason="stop", content=ANSWER, usage=RequestUsage(prompt_tokens=1, completion_tokens=1), cached=False
    )

    class Stub(OpenAIChatCompletionClient):
        async def create(self, *args: Any, **kwargs: Any) -> CreateResult:  # pyright: ignore
            return answer

        def count_tokens(self, *args: Any, **kwargs: Any) -> int:  # pyright: ignore
            return 1

    client = OpenAIChatCompletionClient(model="gpt-4o", api_key="unused")
    stub = Stub(model="gpt-4o", api_key="unused")
    tool, token, arguments = FunctionTool(_aadd, "Add.", name="add"), CancellationToken(), {"a": 1, "b": 2}
    messages = [UserMessage(content=ASKED, source="user")]

    def run() -> Any:
        return tool.run_json(arguments, token)

    cases = [
        Case("llm", "async", lambda: client.create(messages), lambda: stub.create(messages), _has_content),
        Case("tool", "async", run, run, _is_three),
    ]
    return cases, [_hooked("ChatCompletionClient.count_tokens", stub, "count_tokens", messages)]


def llamaindex() -> Cases:
    """`OpenAI` and a `FunctionTool`."""
    from llama_index.core.base.llms.types import ChatMessage, ChatResponse
    from llama_index.core.llms.mock import MockLLM
    from llama_index.core.storage.chat_store import SimpleChatStore
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai import OpenAI

    answer = ChatResponse(message=ChatMessage(content=ANSWER, role="assistant"))

    class Stub(MockLLM):
        def chat(self, *args: Any, **kwargs: Any) -> ChatResponse:
            return answer

        async def achat(self, *args: Any, **kwargs: Any) -> ChatResponse:
            return answer

    llm, stub = OpenAI(model="gpt-4o"), Stub(max_tokens=None)
    tool = FunctionTool.from_defaults(_add, async_fn=_aadd, name="add")
    messages = [ChatMessage(ASKED)]
    cases = [
        Case("llm", "sync", lambda: llm.chat(messages), lambda: stub.chat(messages), _has_message),
        Case("llm", "async", lambda: llm.achat(messages), lambda: stub.achat(messages), _has_message),
        Case("tool", "sync", lambda: tool.call(a=1, b=2), lambda: tool.call(a=1, b=2), _is_three_inside),
        Case("tool", "async", lambda: tool.acall(a=1, b=2), lambda: tool.acall(a=1, b=2), _is_three_inside),
    ]
    return cases, [_hooked("SimpleChatStore.get_messages", SimpleChatStore(), "get_messages", "key")]


def openai() -> Cases:
    """Chat completions; tools are the user's own code there."""
    from openai import AsyncOpenAI, OpenAI
    from openai.types.chat import ChatCompletion

    answer = ChatCompletion.model_validate(
        {
            "id": "1", "created": 1, "model": "m", "object": "chat.completion",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}
            ],
        }
    )  # fmt: skip

    class Stub(OpenAI):
        def request(self, *args: Any, **kwargs: Any) -> Any:
            return answer

    class AsyncStub(AsyncOpenAI):
        async def request(self, *args: Any, **kwargs: Any) -> Any:
            return answer

    clients: list[Any] = [OpenAI(), AsyncOpenAI(), Stub(api_key="unused"), AsyncStub(api_key="unused")]
    asked: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": ASKED}]}

    def asking(client: Any) -> Callable[[], Any]:
        return lambda: client.chat.completions.create(**asked)

    sync, later, bare, bare_later = map(asking, clients)
    cases = [Case("llm", "sync", sync, bare, _has_choice), Case("llm", "async", later, bare_later, _has_choice)]
    return cases, []


def metagpt() -> Cases:
    """A provider's `aask`; MetaGPT has no tools that its model calls."""
    import importlib  # it is in no environment of this package

    llm_class: Any = importlib.import_module("metagpt.provider").OpenAILLM
    config_class: Any = importlib.import_module("metagpt.configs.llm_config").LLMConfig

    class Stub(llm_class):
        async def acompletion_text(self, *args: Any, **kwargs: Any) -> str:
            return ANSWER

    config = config_class(api_key="unused", model="gpt-4o", stream=False)
    llm: Any = llm_class(config)
    stub: Any = Stub(config)
    bare = _original(Stub, "acompletion_text", stub)
    hooked = Hooked("BaseLLM.acompletion_text", lambda: stub.acompletion_text([]).close(), lambda: bare([]).close())
    return [Case("llm", "async", lambda: llm.aask(ASKED), lambda: stub.aask(ASKED), _is_text)], [hooked]


FRAMEWORKS: dict[str, Callable[[], Cases]] = {
    "langchain": langchain,
    "autogen": autogen,
    "llamaindex": llamaindex,
    "openai": openai,
    "metagpt": metagpt,
}


def _hooked(name: str, target: Any, method: str, argument: Any) -> Hooked:
    patched, original = getattr(target, method), _original(type(target), method, target)
    return Hooked(name, lambda: patched(argument), lambda: original(argument))


def _original(cls: type, method: str, target: Any) -> Any:
    """The method as it was before the adapter came; raises AttributeError if no adapter did."""
    return getattr(cls, method).__aios_original__.__get__(target)


def _is_text(result: Any) -> bool:
    return result == ANSWER


def _has_text(result: Any) -> bool:
    return result.text == ANSWER


def _has_content(result: Any) -> bool:
    return result.content == ANSWER


def _has_message(result: Any) -> bool:
    return result.message.content == ANSWER


def _has_choice(result: Any) -> bool:
    return result.choices[0].message.content == ANSWER


def _is_three(result: Any) -> bool:
    return result == 3


def _is_three_inside(result: Any) -> bool:
    return result.raw_output == 3
