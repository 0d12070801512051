from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

import aios_adapters as aios
from aios_adapters.testing import KernelHandle


class City(BaseModel):
    name: str
    people: int


CITY = '{"name": "Oslo", "people": 700000}'


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_invoke_gives_langchains_message(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    @aios.agent(name="plain")
    def ask() -> AIMessage:
        return model.invoke([SystemMessage("be brief"), HumanMessage("say hello there")])

    answer = ask()

    assert type(answer) is AIMessage
    assert answer.content == "hello there"
    assert answer.id is not None
    assert answer.id.startswith("lc_run--")
    assert answer.response_metadata["model_name"] == "fake"
    assert answer.response_metadata["finish_reason"] == "stop"
    usage = answer.usage_metadata
    assert usage is not None
    assert usage["input_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert "cache_read" in usage["input_token_details"]
    (program,) = fake_kernel.ps()
    assert (program.agent, program.llm_calls) == ("plain", 1)


async def test_ainvoke(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    @aios.agent(name="plain")
    async def ask() -> AIMessage:
        return await model.ainvoke("say hello there")

    assert (await ask()).content == "hello there"


def test_batch_runs_in_the_scope_of_its_caller(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    @aios.agent(name="many")
    def ask() -> list[Any]:
        return [message.content for message in model.batch([f"say {n}" for n in range(5)])]

    assert ask() == ["0", "1", "2", "3", "4"]
    assert [program.llm_calls for program in fake_kernel.ps()] == [5]


def test_stream_brings_words_and_then_usage(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    @aios.agent(name="streaming")
    def ask() -> list[AIMessageChunk]:
        return list(model.stream("think 4"))

    chunks = ask()

    assert [chunk.text for chunk in chunks if chunk.text] == ["w0", " w1", " w2", " w3"]
    whole = sum(chunks[1:], chunks[0])
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.response_metadata["model_name"] == "fake"
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_without_usage_if_it_was_switched_off(fake_kernel: KernelHandle) -> None:
    model = ChatOpenAI(model="gpt-4o", stream_usage=False)

    @aios.agent(name="streaming")
    def ask() -> list[AIMessageChunk]:
        return list(model.stream("think 4"))

    assert all(chunk.usage_metadata is None for chunk in ask())


async def test_astream_and_astream_events(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    @aios.agent(name="streaming")
    async def ask() -> tuple[list[str], list[str]]:
        words = [chunk.text async for chunk in model.astream("think 3") if chunk.text]
        events = [event async for event in model.astream_events("think 3")]
        chunks = [event["data"]["chunk"] for event in events if event["event"] == "on_chat_model_stream"]
        return words, [chunk.text for chunk in chunks if chunk.text]

    assert await ask() == (["w0", " w1", " w2"], ["w0", " w1", " w2"])


def test_callbacks_see_every_token(fake_kernel: KernelHandle) -> None:
    class Listener(BaseCallbackHandler):
        tokens: list[Any] = []

        def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
            self.tokens.append(token)

    model = ChatOpenAI(model="gpt-4o", streaming=True, callbacks=[Listener()])

    @aios.agent(name="heard")
    def ask() -> AIMessage:
        return model.invoke("think 3")

    answer = ask()
    assert answer.content == "w0 w1 w2"
    assert [token for token in Listener.tokens if token] == ["w0", " w1", " w2"]


def test_protocol_stream_events(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    @aios.agent(name="events")
    def ask() -> Any:
        stream = model.stream_events("think 3", version="v3")
        return "".join(stream.text), stream.output

    text, output = ask()
    assert text == "w0 w1 w2"
    assert output.text == "w0 w1 w2"


def test_tool_calls(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    bound = model.bind_tools([add])
    question = 'call add {"a": 1, "b": 2}\ncall add {"a": 3, "b": 4}'

    @aios.agent(name="caller")
    def ask() -> tuple[AIMessage, AIMessageChunk, AIMessage]:
        first = bound.invoke(question)
        chunks = list(bound.stream(question))
        results = [ToolMessage("3", tool_call_id=first.tool_calls[0]["id"], name="add")]
        last = bound.invoke([HumanMessage(question), first, *results])
        return first, sum(chunks[1:], chunks[0]), last

    first, streamed, last = ask()

    for message in (first, streamed):
        assert [(call["name"], call["args"]) for call in message.tool_calls] == [
            ("add", {"a": 1, "b": 2}),
            ("add", {"a": 3, "b": 4}),
        ]
        assert all(call["id"] for call in message.tool_calls)
        assert message.response_metadata["finish_reason"] == "tool_calls"
    assert last.content == "tool said: 3"


def test_arguments_that_are_no_json_are_told_to_the_agent(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    @aios.agent(name="caller")
    def ask() -> tuple[AIMessage, AIMessage]:
        wrong = model.bind_tools([add]).invoke("call add {broken")
        return wrong, model.bind_tools([add]).invoke([HumanMessage("hi"), wrong, HumanMessage("say again")])

    wrong, after = ask()
    assert wrong.tool_calls == []
    assert [call["args"] for call in wrong.invalid_tool_calls] == ["{broken"]
    assert after.content == "again"


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(fake_kernel: KernelHandle, model: ChatOpenAI, method: Any) -> None:
    structured = model.with_structured_output(City, method=method)
    question = f"call City {CITY}" if method == "function_calling" else f"json {CITY}"

    @aios.agent(name="structured")
    def ask() -> Any:
        return structured.invoke(question)

    assert ask() == City(name="Oslo", people=700000)


@pytest.mark.parametrize("schema", [City, City.model_json_schema()], ids=["class", "dict"])
async def test_structured_output_streams_and_keeps_the_raw_message(
    fake_kernel: KernelHandle, model: ChatOpenAI, schema: Any
) -> None:
    structured = model.with_structured_output(schema, method="json_schema", include_raw=True)

    @aios.agent(name="structured")
    async def ask() -> tuple[Any, Any]:
        whole = await structured.ainvoke(f"json {CITY}")
        async for piece in structured.astream(f"json {CITY}"):
            last = piece
        return whole, last

    whole, last = await ask()
    parsed = whole["parsed"]
    assert (parsed if isinstance(parsed, dict) else parsed.model_dump()) == json.loads(CITY)
    assert whole["raw"].content == CITY
    assert whole["parsing_error"] is None
    assert last["parsed"] == parsed


def test_the_schema_reaches_the_kernel(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    @aios.agent(name="structured")
    def ask() -> Any:
        return model.with_structured_output(City).invoke("which city?")  # the fake model obeys the schema

    assert ask() == City(name="text", people=1)


def test_an_answer_cut_off_is_a_parsing_error(fake_kernel: KernelHandle) -> None:
    model = ChatOpenAI(model="gpt-4o", max_tokens=1)

    @aios.agent(name="structured")
    def ask() -> Any:
        return model.with_structured_output(City, include_raw=True).invoke(f"json {CITY}")

    answer = ask()
    assert answer["parsed"] is None
    assert "parsed" in str(answer["parsing_error"])
    assert answer["raw"].response_metadata["finish_reason"] == "length"


def test_limits_and_stop_strings(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="limited")
    def ask() -> list[AIMessage]:
        return [
            ChatOpenAI(model="gpt-4o", max_tokens=2).invoke("think 9"),
            ChatOpenAI(model="gpt-4o").bind(max_tokens=2).invoke("think 9"),
            ChatOpenAI(model="gpt-4o").invoke("think 9", stop=["w3"]),
            ChatOpenAI(model="gpt-4o", stop_sequences=["w3"]).invoke("think 9"),
        ]

    first, second, third, fourth = ask()
    for cut in (first, second):
        assert cut.content == "w0 w1"
        assert cut.response_metadata["finish_reason"] == "length"
    assert third.text.strip() == fourth.text.strip() == "w0 w1 w2"


def test_logprobs(fake_kernel: KernelHandle) -> None:
    model = ChatOpenAI(model="gpt-4o", logprobs=True, top_logprobs=1)

    @aios.agent(name="sure")
    def ask() -> tuple[AIMessage, AIMessageChunk]:
        chunks = list(model.stream("think 3"))
        return model.invoke("think 3"), sum(chunks[1:], chunks[0])

    for message in ask():
        content = message.response_metadata["logprobs"]["content"]
        assert "".join(entry["token"] for entry in content).startswith("w0 w1 w2")
        assert content[0]["top_logprobs"][0]["token"] == "w0"


def test_several_answers(fake_kernel: KernelHandle) -> None:
    model = ChatOpenAI(model="gpt-4o", n=3)

    @aios.agent(name="several")
    def ask() -> Any:
        return model.generate([[HumanMessage("say one")]])

    result = ask()
    assert [generation.text for generation in result.generations[0]] == ["one"] * 3
    assert fake_kernel.ps()[0].llm_calls == 3
    assert result.llm_output["token_usage"]["completion_tokens"] == fake_kernel.ps()[0].completion_tokens


def test_models_of_any_class_are_served(fake_kernel: KernelHandle) -> None:
    class Late(FakeListChatModel):
        """A class that is younger than the adapter."""

        temperature: float = 0.0

    @aios.agent(name="any")
    def ask() -> list[Any]:
        models = [FakeListChatModel(responses=["canned"]), Late(responses=["canned"])]
        return [model.invoke("say served").content for model in models]

    assert ask() == ["served", "served"]


def cancelled(kernel: KernelHandle) -> bool:
    return [span.outcome for span in kernel.spans() if span.syscall == "llm.chat"] == ["cancelled"]


async def test_cancelling_stops_the_generation(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    @aios.agent(name="cancelled")
    async def ask() -> None:
        await model.ainvoke("ponder")

    task = asyncio.create_task(ask())
    assert await asyncio.to_thread(
        fake_kernel.wait_for, lambda: any(program.state == "running" for program in fake_kernel.ps())
    )
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(fake_kernel.wait_for, lambda: cancelled(fake_kernel))


def test_leaving_a_stream_stops_the_generation(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    @aios.agent(name="left")
    def ask() -> None:
        stream = model.stream("ponder")
        next(stream)
        stream.close()
        assert fake_kernel.wait_for(lambda: cancelled(fake_kernel))

    ask()


async def test_leaving_an_async_stream_stops_the_generation(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    @aios.agent(name="left")
    async def ask() -> None:
        stream = model.astream("ponder")
        await anext(stream)
        await stream.aclose()
        assert await asyncio.to_thread(fake_kernel.wait_for, lambda: cancelled(fake_kernel))

    await ask()
