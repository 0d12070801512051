"""Chat completions inside a scope: every way in which the SDK offers them, in its own types."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

import aios_adapters as aios
from aios_adapters.testing import KernelHandle

pytestmark = pytest.mark.usefixtures("fake_kernel")

SUM = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


class City(BaseModel):
    name: str
    people: int


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@aios.agent(name="asker")
def ask(text: str, **options: Any) -> Any:
    return OpenAI().chat.completions.create(model="gpt-4o", messages=user(text), **options)


@aios.agent(name="asker")
async def aask(text: str, **options: Any) -> Any:
    return await AsyncOpenAI().chat.completions.create(model="gpt-4o", messages=user(text), **options)


async def test_create_gives_the_sdks_own_type() -> None:
    for completion in (ask("say hello"), await aask("say hello")):
        assert isinstance(completion, ChatCompletion)
        assert completion.choices[0].message.content == "hello"
        assert completion.choices[0].finish_reason == "stop"
        assert completion.model == "fake"
        assert completion.usage is not None
        assert completion.usage.prompt_tokens_details is not None
        assert completion.usage.prompt_tokens_details.cached_tokens == 0
        assert completion._request_id == completion.id


async def test_streams_word_by_word_in_the_sdks_own_type() -> None:
    chunks: list[ChatCompletionChunk] = list(ask("think 4", stream=True, stream_options={"include_usage": True}))
    async for chunk in await aask("think 4", stream=True):
        chunks.append(chunk)
    assert all(isinstance(chunk, ChatCompletionChunk) for chunk in chunks)
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert words == ["w0", " w1", " w2", " w3"] * 2
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [5]


def test_tool_calls_and_their_answers_in_a_loop() -> None:
    @aios.agent(name="calculator")
    def agent() -> str | None:
        client, messages = OpenAI(), user('call add {"a": 1}\ncall add {"a": 2}')
        while True:
            message = client.chat.completions.create(model="m", messages=messages, tools=[SUM]).choices[0].message
            messages.append(message)  # the SDK's object itself, as its documentation shows
            if not message.tool_calls:
                return message.content
            for call in message.tool_calls:
                assert call.type == "function"
                answer = f"{call.function.name}{call.function.arguments}"
                messages.append({"role": "tool", "tool_call_id": call.id, "content": answer})

    assert agent() == 'tool said: add{"a": 1} | add{"a": 2}'


def test_streamed_tool_calls() -> None:
    chunks = list(ask('call add {"a": 1}\ncall add {"a": 2}', tools=[SUM], stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [(call.index, call.function.name, call.function.arguments) for call in calls] == [
        (0, "add", '{"a": 1}'),
        (1, "add", '{"a": 2}'),
    ]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_parse_gives_typed_output() -> None:
    @aios.agent(name="parser")
    async def agent() -> list[Any]:
        asked: dict[str, Any] = {"model": "m", "messages": user("hm"), "response_format": City}
        parsed = [
            OpenAI().chat.completions.parse(**asked),
            OpenAI().beta.chat.completions.parse(**asked),
            await AsyncOpenAI().chat.completions.parse(**asked),
        ]
        with OpenAI().chat.completions.stream(**asked) as stream:
            parsed.append(stream.get_final_completion())
        async with AsyncOpenAI().chat.completions.stream(**asked) as astream:
            parsed.append(await astream.get_final_completion())
        return [completion.choices[0].message.parsed for completion in parsed]

    assert await agent() == [City(name="text", people=1)] * 5


def test_parse_gives_typed_tool_arguments() -> None:
    @aios.agent(name="parser")
    def agent() -> Any:
        tool = openai.pydantic_function_tool(City)
        messages = user('call City {"name": "Bonn", "people": 3}')
        return OpenAI().chat.completions.parse(model="m", messages=messages, tools=[tool])

    (call,) = agent().choices[0].message.tool_calls
    assert call.function.parsed_arguments == City(name="Bonn", people=3)


def test_stream_helper_tells_events() -> None:
    @aios.agent(name="streamer")
    def agent() -> list[str]:
        with OpenAI().chat.completions.stream(model="m", messages=user("think 2")) as stream:
            return [event.type for event in stream]

    told = agent()
    assert [kind for kind in told if kind != "chunk"] == ["content.delta"] * 3 + ["content.done"]
    assert told.count("chunk") == 4


async def test_raw_and_streaming_responses() -> None:
    @aios.agent(name="raw")
    async def agent() -> list[Any]:
        asked: dict[str, Any] = {"model": "m", "messages": user("say raw")}
        raw = OpenAI().chat.completions.with_raw_response.create(**asked)
        araw = await AsyncOpenAI().chat.completions.with_raw_response.create(**asked)
        with OpenAI().chat.completions.with_streaming_response.create(**asked) as response:
            lines = "".join(response.iter_text())
        async with AsyncOpenAI().chat.completions.with_streaming_response.create(**asked) as aresponse:
            alines = await aresponse.text()
        streamed = OpenAI().chat.completions.with_raw_response.create(**asked, stream=True)
        words = [chunk.choices[0].delta.content for chunk in streamed.parse() if chunk.choices[0].delta.content]
        assert raw.headers["content-type"] == "application/json"
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert raw.elapsed.total_seconds() >= 0
        return [
            raw.parse().choices[0].message.content,
            araw.parse().choices[0].message.content,
            words[0],
            lines,
            alines,
        ]

    said = await agent()
    assert said[:3] == ["raw"] * 3
    assert all('"content":"raw"' in text for text in said[3:])


def test_limits_and_logprobs() -> None:
    cut = ask("think 9", max_completion_tokens=3)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("w0 w1 w2", "length")
    assert ask("think 9", stop=[" w2"]).choices[0].message.content == "w0 w1"
    logprobs = ask("say one two", logprobs=True, top_logprobs=1, seed=7, temperature=0).choices[0].logprobs
    assert [entry.token for entry in logprobs.content] == ["one", " two"]


def test_the_extensions_pass_in_extra_body() -> None:
    forced = ask("say something", extra_body={"aios_forced": "forced words", "top_k": 5})
    assert forced.choices[0].message.content == "forced words"
    assert len(forced.model_extra["aios_argmax"]) == 3  # two words and the end


def test_the_module_level_client(monkeypatch: pytest.MonkeyPatch) -> None:
    @aios.agent(name="module")
    def agent() -> Any:
        return openai.chat.completions.create(model="m", messages=user("say hi"))

    assert agent().choices[0].message.content == "hi"


def test_azure_clients(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="azure")
    def agent() -> Any:
        client = openai.AzureOpenAI(azure_endpoint="https://nowhere.example", api_version="2024-10-21")
        return client.chat.completions.create(model="my-deployment", messages=user("say azure"))

    assert agent().choices[0].message.content == "azure"
    assert [span.detail for span in fake_kernel.spans() if span.syscall == "llm.chat"] == ["my-deployment"]


def test_a_stream_may_be_read_after_its_agent_has_returned(fake_kernel: KernelHandle) -> None:
    chunks = list(ask("think 50", stream=True))
    assert len(chunks) == 52
    assert fake_kernel.wait_for(lambda: all(row.state == "finished" for row in fake_kernel.ps()))
    assert [row.error for row in fake_kernel.ps()] == [None]
