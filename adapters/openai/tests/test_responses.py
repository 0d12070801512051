"""The Responses API inside a scope."""

from __future__ import annotations

from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response
from pydantic import BaseModel

import aios_adapters as aios

pytestmark = pytest.mark.usefixtures("fake_kernel")

ADD = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": False}


class City(BaseModel):
    name: str
    people: int


@aios.agent(name="asker")
def ask(text: Any, **options: Any) -> Any:
    return OpenAI().responses.create(model="gpt-4o", input=text, **options)


@aios.agent(name="asker")
async def aask(text: Any, **options: Any) -> Any:
    return await AsyncOpenAI().responses.create(model="gpt-4o", input=text, **options)


async def test_create_gives_the_sdks_own_type() -> None:
    for response in (ask("say hello", instructions="be kind"), await aask("say hello", instructions="be kind")):
        assert isinstance(response, Response)
        assert (response.output_text, response.status, response.model) == ("hello", "completed", "fake")
        assert response.usage is not None
        assert response.usage.input_tokens_details.cached_tokens == 0


async def test_stream_tells_the_events() -> None:
    events = list(ask("think 3", stream=True))
    events += [event async for event in await aask("think 3", stream=True)]
    types = [event.type for event in events]
    assert types[0] == "response.created"
    assert types[-1] == "response.completed"
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == ["w0", " w1", " w2"] * 2


def test_tool_calls_and_their_outputs_in_a_loop() -> None:
    @aios.agent(name="calculator")
    def agent() -> str:
        client, items = OpenAI(), [{"role": "user", "content": 'call add {"a": 1}\ncall add {"a": 2}'}]
        while True:
            response = client.responses.create(model="m", input=items, tools=[ADD])
            items += response.output
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                return response.output_text
            items += [
                {"type": "function_call_output", "call_id": call.call_id, "output": call.arguments} for call in calls
            ]

    assert agent() == 'tool said: {"a": 1} | {"a": 2}'


async def test_parse_and_the_stream_helper() -> None:
    @aios.agent(name="parser")
    async def agent() -> list[Any]:
        asked: dict[str, Any] = {"model": "m", "input": "hm", "text_format": City}
        parsed = [OpenAI().responses.parse(**asked), await AsyncOpenAI().responses.parse(**asked)]
        with OpenAI().responses.stream(**asked) as stream:
            parsed.append(stream.get_final_response())
        async with AsyncOpenAI().responses.stream(**asked) as astream:
            parsed.append(await astream.get_final_response())
        return [response.output_parsed for response in parsed]

    assert await agent() == [City(name="text", people=1)] * 4


def test_the_token_limit() -> None:
    response = ask("think 9", max_output_tokens=2)
    assert (response.output_text, response.status) == ("w0 w1", "incomplete")
    assert response.incomplete_details.reason == "max_output_tokens"


def test_raw_response() -> None:
    @aios.agent(name="raw")
    def agent() -> Any:
        return OpenAI().responses.with_raw_response.create(model="m", input="say raw")

    assert agent().parse().output_text == "raw"
