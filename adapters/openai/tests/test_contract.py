"""The contract suite, for the OpenAI SDK: by chat completions and by responses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from aios_adapters.contract import AdapterContract, Framework


class City(BaseModel):
    city: str
    people: int


def asked(text: str) -> Any:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}


class TestChatCompletions(AdapterContract):
    @pytest.fixture
    def framework(self) -> Framework:
        client, blocking_client = AsyncOpenAI(), OpenAI()

        async def chat(text: str) -> str:
            return (await client.chat.completions.create(**asked(text))).choices[0].message.content or ""

        def blocking(text: str) -> str:
            return blocking_client.chat.completions.create(**asked(text)).choices[0].message.content or ""

        async def stream(text: str) -> AsyncIterator[str]:
            async with await client.chat.completions.create(**asked(text), stream=True) as chunks:
                async for chunk in chunks:
                    for choice in chunk.choices:
                        yield choice.delta.content or ""

        async def usage(text: str) -> tuple[int, int]:
            counted = (await client.chat.completions.create(**asked(text))).usage
            return counted.prompt_tokens, counted.completion_tokens

        async def structured(text: str) -> dict[str, Any]:
            answer = await client.chat.completions.parse(**asked(text), response_format=City)
            parsed = answer.choices[0].message.parsed
            assert isinstance(parsed, City)
            return parsed.model_dump()

        return Framework("openai", chat, blocking, stream, usage, structured, errors=(openai.OpenAIError,))


class TestResponses(AdapterContract):
    @pytest.fixture
    def framework(self) -> Framework:
        client, blocking_client = AsyncOpenAI(), OpenAI()

        async def chat(text: str) -> str:
            return (await client.responses.create(model="gpt-4o", input=text)).output_text

        def blocking(text: str) -> str:
            return blocking_client.responses.create(model="gpt-4o", input=text).output_text

        async def stream(text: str) -> AsyncIterator[str]:
            async with await client.responses.create(model="gpt-4o", input=text, stream=True) as events:
                async for event in events:
                    if event.type == "response.output_text.delta":
                        yield event.delta

        async def usage(text: str) -> tuple[int, int]:
            counted = (await client.responses.create(model="gpt-4o", input=text)).usage
            assert counted is not None
            return counted.input_tokens, counted.output_tokens

        async def structured(text: str) -> dict[str, Any]:
            answer = await client.responses.parse(model="gpt-4o", input=text, text_format=City)
            assert isinstance(answer.output_parsed, City)
            return answer.output_parsed.model_dump()

        return Framework("openai", chat, blocking, stream, usage, structured, errors=(openai.OpenAIError,))
