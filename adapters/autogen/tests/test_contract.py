"""The contract suite, for AutoGen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import CreateResult, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient
from pydantic import BaseModel

from aios_adapters.contract import AdapterContract, Framework, Tool


class City(BaseModel):
    city: str
    people: int


def asked(text: str) -> list[UserMessage]:
    return [UserMessage(content=text, source="user")]


class TestContract(AdapterContract):
    @pytest.fixture
    def framework(self, client: OpenAIChatCompletionClient) -> Framework:
        async def chat(text: str) -> str:
            return str((await client.create(asked(text))).content)

        async def stream(text: str) -> AsyncIterator[str]:
            async with aclosing(client.create_stream(asked(text))) as items:  # type: ignore[type-var]
                async for item in items:
                    if not isinstance(item, CreateResult):
                        yield item

        async def usage(text: str) -> tuple[int, int]:
            counted = (await client.create(asked(text))).usage
            return counted.prompt_tokens, counted.completion_tokens

        async def structured(text: str) -> dict[str, Any]:
            answer = await client.create(asked(text), json_output=City)
            return City.model_validate_json(str(answer.content)).model_dump()

        async def agent(name: str, text: str, tools: Sequence[Tool]) -> str:
            result = await AssistantAgent(name, client, tools=[*tools]).run(task=text)
            return result.messages[-1].to_text()  # type: ignore[union-attr]

        return Framework("autogen", chat, None, stream, usage, structured, agent)
