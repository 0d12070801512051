"""The OpenAI SDK of this environment against the HTTP front of a kernel in another one, by environment variables alone.

`OPENAI_BASE_URL` and `OPENAI_API_KEY` say where and who; nothing of aios is installed here. The kernel has the fake
engine and takes `AIOS_MAX_OPEN_CALLS` calls at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

TOKEN = os.environ["OPENAI_API_KEY"].partition(":")[0]
MOST_OPEN = int(os.environ["AIOS_MAX_OPEN_CALLS"])
ADD: Any = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": ADD, "strict": True}}
FLAT_TOOL: Any = {"type": "function", "name": "add", "parameters": ADD, "strict": True}


class City(BaseModel):
    name: str
    people: int


@pytest.fixture
def client() -> Any:
    with OpenAI(max_retries=0) as client:
        yield client


@pytest.fixture
async def aclient() -> Any:
    async with AsyncOpenAI(max_retries=0) as client:
        yield client


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


# --- chat completions -----------------------------------------------------------------------------------------------


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-4o", messages=user("say hello"))
    assert answer.choices[0].message.content == "hello"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id == answer.id


async def test_chat_async(aclient: AsyncOpenAI) -> None:
    answers = await asyncio.gather(
        *(aclient.chat.completions.create(model="m", messages=user(f"say {n}")) for n in range(MOST_OPEN // 2))
    )
    assert [answer.choices[0].message.content for answer in answers] == [str(n) for n in range(MOST_OPEN // 2)]


def test_chat_streamed(client: OpenAI) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model="m", messages=user("think 3"), **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "w0 w1 w2"
    assert chunks[-1].usage.completion_tokens == 4


async def test_chat_streamed_async(aclient: AsyncOpenAI) -> None:
    stream = await aclient.chat.completions.create(model="m", messages=user("think 3"), stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "w0 w1 w2"


def test_chat_tools_in_a_loop(client: OpenAI) -> None:
    messages = user('call add {"a": 1}\ncall add {"a": 2}')
    message = client.chat.completions.create(model="m", messages=messages, tools=[TOOL]).choices[0].message
    assert [call.function.arguments for call in message.tool_calls] == ['{"a": 1}', '{"a": 2}']
    messages += [message, *({"role": "tool", "tool_call_id": c.id, "content": "7"} for c in message.tool_calls)]
    answer = client.chat.completions.create(model="m", messages=messages, tools=[TOOL])
    assert answer.choices[0].message.content == "tool said: 7 | 7"


def test_chat_tools_streamed(client: OpenAI) -> None:
    with client.chat.completions.stream(model="m", messages=user('call add {"a": 5}'), tools=[TOOL]) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        message = stream.get_final_completion().choices[0].message
    assert done[0].parsed_arguments == {"a": 5}
    assert message.tool_calls[0].function.name == "add"


def test_chat_parsed(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(model="m", messages=user("x"), response_format=City)
    assert parsed.choices[0].message.parsed == City(name="text", people=1)
    with client.chat.completions.stream(model="m", messages=user("x"), response_format=City) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == City(name="text", people=1)


def test_chat_cut_at_its_limit_is_not_parsed(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="m", messages=user("think 9"), response_format=City, max_tokens=1)


def test_chat_sampling(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m", messages=user("think 9"), n=2, max_completion_tokens=2, seed=1, temperature=0.5, logprobs=True
    )
    assert [choice.message.content for choice in answer.choices] == ["w0 w1"] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 2
    assert len(answer.choices[0].logprobs.content) == 2
    assert client.chat.completions.create(model="m", messages=user("think 9"), stop=["w2"]).choices[0].message.content


def test_raw_answers(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="m", messages=user("say raw"))
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.content == "raw"
    with client.chat.completions.with_streaming_response.create(model="m", messages=user("say raw")) as streaming:
        assert b"raw" in streaming.read()


# --- responses ------------------------------------------------------------------------------------------------------


def test_responses(client: OpenAI) -> None:
    response = client.responses.create(model="m", input="say hello", instructions="be kind", metadata={"a": "b"})
    assert (response.output_text, response.status, response.metadata) == ("hello", "completed", {"a": "b"})
    events = list(client.responses.create(model="m", input="think 2", stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "w0 w1"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"


async def test_responses_tools_in_a_loop(aclient: AsyncOpenAI) -> None:
    asked: list[Any] = user('call add {"a": 1}')
    first = await aclient.responses.create(model="m", input=asked, tools=[FLAT_TOOL])
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert (call.name, call.arguments) == ("add", '{"a": 1}')
    returned: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "7"}
    again: Any = [*asked, *(item.model_dump() for item in first.output), returned]
    second = await aclient.responses.create(model="m", input=again, tools=[FLAT_TOOL])
    assert second.output_text == "tool said: 7"


def test_responses_parsed(client: OpenAI) -> None:
    assert client.responses.parse(model="m", input="x", text_format=City).output_parsed == City(name="text", people=1)
    with client.responses.stream(model="m", input="x", text_format=City) as stream:
        assert stream.get_final_response().output_parsed == City(name="text", people=1)


# --- embeddings and models ------------------------------------------------------------------------------------------


async def test_embeddings(client: OpenAI, aclient: AsyncOpenAI) -> None:
    plain = client.embeddings.create(model="e", input=["a", "b"], encoding_format="float")
    packed = await aclient.embeddings.create(model="e", input=["a", "b"])
    for one, other in zip(plain.data, packed.data, strict=True):
        assert other.embedding == pytest.approx(one.embedding, abs=1e-6)


async def test_models(client: OpenAI, aclient: AsyncOpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    assert (await aclient.models.retrieve("fake")).owned_by == "aios"


# --- errors, retries, timeouts --------------------------------------------------------------------------------------


def _chat(client: OpenAI, text: str = "x", **options: Any) -> Any:
    return client.chat.completions.create(model="m", messages=user(text), **options)


@pytest.mark.parametrize(
    ("kind", "said", "call"),
    [
        (openai.BadRequestError, "modalities", lambda c: _chat(c, modalities=["audio"])),
        (openai.BadRequestError, "window", lambda c: _chat(c, "a " * 70_000)),
        (openai.BadRequestError, "response_id", lambda c: c.responses.create(input="x", previous_response_id="r")),
        (openai.BadRequestError, "dimensions", lambda c: c.embeddings.create(model="m", input="x", dimensions=3)),
        (openai.NotFoundError, "nope", lambda c: c.models.retrieve("nope")),
        (openai.NotFoundError, "images", lambda c: c.images.generate(prompt="x")),
        (openai.AuthenticationError, "token", lambda c: c.with_options(api_key="wrong").models.list()),
    ],
)
def test_errors_are_the_sdks(client: OpenAI, kind: Any, said: str, call: Any) -> None:
    with pytest.raises(kind, match=said) as caught:
        call(client.with_options(max_retries=3))
    assert "fix: " in str(caught.value)
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_busy_kernel_is_asked_again(client: OpenAI) -> None:
    held = [client.chat.completions.create(model="m", messages=user("ponder"), stream=True) for _ in range(MOST_OPEN)]
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="m", messages=user("say me too"))
    assert int(caught.value.response.headers["retry-after"]) >= 1
    hang_up = threading.Timer(0.3, lambda: [stream.close() for stream in held])
    hang_up.start()
    patient = client.with_options(max_retries=5)
    raw = patient.chat.completions.with_raw_response.create(model="m", messages=user("say me too"))
    assert raw.parse().choices[0].message.content == "me too"
    assert raw.retries_taken >= 1
    hang_up.join()


async def test_timeouts(client: OpenAI, aclient: AsyncOpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model="m", messages=user("ponder"))
    with pytest.raises(openai.APITimeoutError):
        await aclient.with_options(timeout=0.3).responses.create(model="m", input="ponder")


async def test_a_cancelled_task(aclient: AsyncOpenAI) -> None:
    task = asyncio.create_task(aclient.chat.completions.create(model="m", messages=user("ponder")))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_agents_are_told_apart_by_their_keys(client: OpenAI) -> None:
    for name in ("writer", "critic", "writer"):
        client.with_options(api_key=f"{TOKEN}:{name}").models.list()
        client.with_options(api_key=f"{TOKEN}:{name}").chat.completions.create(model="m", messages=user("hi"))
