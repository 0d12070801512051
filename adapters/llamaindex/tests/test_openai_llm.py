"""OpenAI's own classes: no key, no network, their own code around the kernel's model."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI, OpenAIResponses
from openai import OpenAIError
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageToolCall

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel.errors import DeadlineExceeded, Unsupported

CALLS = 'call add {"a": 1, "b": 2}\ncall add {"a": 3, "b": 4}'


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def said(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


async def test_all_leaves(fake_kernel: KernelHandle, no_network: list[Any]) -> None:
    @aios.agent(name="leaves")
    async def run() -> list[Any]:
        llm = OpenAI(model="gpt-4o")
        return [
            llm.chat(said("say a b")).message.content,
            llm.complete("say a b").text,
            "".join(piece.delta or "" for piece in llm.stream_chat(said("say a b"))),
            "".join(piece.delta or "" for piece in llm.stream_complete("say a b")),
            (await llm.achat(said("say a b"))).message.content,
            (await llm.acomplete("say a b")).text,
            "".join([piece.delta or "" async for piece in await llm.astream_chat(said("say a b"))]),
            "".join([piece.delta or "" async for piece in await llm.astream_complete("say a b")]),
        ]

    assert await run() == ["a b"] * 8
    assert [(row.framework, row.llm_calls) for row in fake_kernel.ps()] == [("llamaindex", 8)]
    assert {span.detail for span in fake_kernel.spans() if span.syscall == "llm.chat"} == {"gpt-4o"}
    assert no_network == []


def test_raw_usage_and_logprobs_are_the_sdks_own(fake_kernel: KernelHandle) -> None:
    llm = OpenAI(model="gpt-4o", logprobs=True, top_logprobs=1, max_tokens=2, additional_kwargs={"seed": 1})
    with aios.running("raw"):
        again = llm.chat(said("say one two three"))
        whole = llm.chat(said("say one two three"))
        *_, last = llm.stream_chat(said("say one two three"))
    assert isinstance(whole.raw, ChatCompletion)
    assert (whole.raw.model, whole.raw.choices[0].finish_reason) == ("fake", "length")
    assert whole.message.content == again.message.content == "one two"
    assert whole.logprobs is not None
    assert [token[0].token for token in whole.logprobs] == ["one", " two"]
    assert whole.raw.usage is not None
    assert whole.raw.usage.prompt_tokens_details is not None
    assert whole.raw.usage.prompt_tokens_details.cached_tokens is not None
    assert whole.additional_kwargs["completion_tokens"] == whole.raw.usage.completion_tokens == 2
    assert isinstance(last.raw, ChatCompletionChunk)
    assert last.raw.choices[0].finish_reason == "length"
    assert last.additional_kwargs["completion_tokens"] == 2


async def test_tool_calls_whole_and_streamed(fake_kernel: KernelHandle) -> None:
    llm, tool = OpenAI(model="gpt-4o"), FunctionTool.from_defaults(add)
    with aios.running("tools"):
        whole = llm.chat_with_tools([tool], CALLS, allow_parallel_tool_calls=True)
        single = llm.chat_with_tools([tool], CALLS)
        *_, streamed = llm.stream_chat_with_tools([tool], CALLS, allow_parallel_tool_calls=True)
        astreamed = [a async for a in await llm.astream_chat_with_tools([tool], CALLS)][-1]
    for answer in (whole, streamed, astreamed):
        calls = llm.get_tool_calls_from_response(answer)
        assert [call.tool_kwargs for call in calls] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
        assert len({call.tool_id for call in calls}) == 2
    assert len(llm.get_tool_calls_from_response(single)) == 1
    assert isinstance(whole.message.additional_kwargs["tool_calls"][0], ChatCompletionMessageToolCall)
    assert isinstance(whole.message.blocks[-1], ToolCallBlock)


def test_tool_results_go_back(fake_kernel: KernelHandle) -> None:
    llm, tool = OpenAI(model="gpt-4o"), FunctionTool.from_defaults(add)
    with aios.running("round"):
        answer = llm.chat_with_tools([tool], CALLS, allow_parallel_tool_calls=True)
        results = [
            ChatMessage(role="tool", content=str(n), additional_kwargs={"tool_call_id": call.tool_id})
            for n, call in enumerate(llm.get_tool_calls_from_response(answer))
        ]
        final = llm.chat([*said(CALLS), answer.message, *results])
    assert final.message.content == "tool said: 0 | 1"


class City(BaseModel):
    """A city."""

    name: str
    people: int


@pytest.mark.parametrize("model", ["gpt-4o", "my-own-model"], ids=["by schema", "by a tool call"])
async def test_structured_output(fake_kernel: KernelHandle, model: str) -> None:
    call = 'call City {"name": "Ulm", "people": 3}\njson {"name": "Ulm", "people": 3}'
    prompt, ulm = PromptTemplate("{call}"), City(name="Ulm", people=3)
    llm = OpenAI(model=model)
    with aios.running("structured"):
        assert llm.structured_predict(City, prompt, call=call) == ulm
        assert await llm.astructured_predict(City, prompt, call=call) == ulm
        assert llm.as_structured_llm(City).chat(said(call)).raw == ulm
        assert (await llm.as_structured_llm(City).achat(said(call))).raw == ulm
        *_, last = llm.stream_structured_predict(City, prompt, call=call)
        assert last == ulm
        *_, last = [part async for part in await llm.astream_structured_predict(City, prompt, call=call)]
        assert last == ulm
    assert fake_kernel.ps()[0].llm_calls == 6


def test_schema_binds_without_help(fake_kernel: KernelHandle) -> None:
    with aios.running("bound"):
        assert OpenAI(model="gpt-4o").structured_predict(City, PromptTemplate("which?")) == City(name="text", people=1)


def test_a_model_name_that_openai_does_not_know(fake_kernel: KernelHandle) -> None:
    llm = OpenAI(model="my-own-model")
    with aios.running("named"):
        assert llm.metadata.is_chat_model
        assert llm.metadata.is_function_calling_model
        assert llm.metadata.context_window > 0
        assert llm.complete("say ok").text == "ok"
        assert llm.predict(PromptTemplate("say {word}"), word="fine") == "fine"
        assert OpenAI(model="gpt-3.5-turbo-instruct").complete("say old").text == "old"
    with pytest.raises(ValueError, match="Unknown model"):
        _ = llm.metadata


def test_without_reused_clients(fake_kernel: KernelHandle) -> None:
    with aios.running("fresh"):
        assert OpenAI(model="gpt-4o", reuse_client=False).complete("say x").text == "x"


def test_a_subclass_with_its_own_client_is_caught(fake_kernel: KernelHandle, no_network: list[Any]) -> None:
    class Azure(OpenAI):
        def _get_client(self) -> Any:
            raise AssertionError("not reached inside a scope")

    with aios.running("azure"):
        assert Azure(model="gpt-4o").complete("say x").text == "x"


def test_a_field_that_is_not_served_is_refused_by_name(fake_kernel: KernelHandle) -> None:
    with aios.running("refused"), pytest.raises(Unsupported, match="web_search_options"):
        OpenAI(model="gpt-4o", additional_kwargs={"web_search_options": {}}).complete("x")


def test_the_users_timeout_is_kept(fake_kernel: KernelHandle) -> None:
    with aios.running("late"), pytest.raises(DeadlineExceeded):
        OpenAI(model="gpt-4o", timeout=0.01).complete("ponder")


async def test_cancelling_a_stream_stops_the_generation(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="streaming")
    async def run() -> None:
        async for _ in await OpenAI(model="gpt-4o").astream_chat(said("ponder")):
            started.set()

    started = asyncio.Event()
    task = asyncio.create_task(run())
    await asyncio.wait_for(started.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fake_kernel.wait_for(lambda: fake_kernel.ps()[0].state == "finished")
    assert [span.outcome for span in fake_kernel.spans() if span.syscall == "llm.chat"] == ["cancelled"]


async def test_outside_a_scope_the_key_is_missed(fake_kernel: KernelHandle) -> None:
    llm = OpenAI(model="gpt-4o", max_retries=0)
    with pytest.raises(OpenAIError):
        llm.complete("x")
    with pytest.raises(OpenAIError):
        await llm.acomplete("x")
    assert fake_kernel.ps() == []


def test_outside_a_scope_the_network_is_tried(no_network: list[Any]) -> None:
    with pytest.raises(OpenAIError, match="Connection"):
        OpenAI(model="gpt-4o", api_key="k", max_retries=0).complete("x")
    assert no_network == ["api.openai.com"]


async def test_the_responses_class(fake_kernel: KernelHandle, no_network: list[Any]) -> None:
    llm, tool = (
        OpenAIResponses(model="gpt-4o", api_key="unused", instructions="be brief"),
        FunctionTool.from_defaults(add),
    )
    with aios.running("responses"):
        assert llm.complete("say x").text == "x"
        assert "".join([p.delta or "" async for p in await llm.astream_chat(said("say a b"))]) == "a b"
        answer = await llm.achat_with_tools([tool], CALLS)
        assert [c.tool_kwargs["a"] for c in llm.get_tool_calls_from_response(answer)] == [1, 3]
        ulm = City(name="Ulm", people=3)
        prompt = PromptTemplate("{call}")
        assert llm.structured_predict(City, prompt, call='json {"name": "Ulm", "people": 3}') == ulm
        assert await llm.astructured_predict(City, prompt, call='json {"name": "Ulm", "people": 3}') == ulm
        assert OpenAIResponses(model="my-own-model", api_key="unused").metadata.context_window > 0
    assert no_network == []
