"""The contract suite, for LlamaIndex."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai import OpenAI

from aios_adapters.contract import AdapterContract, Framework, Tool

# The workflow looks at every attribute of an agent, its model's deprecated ones too.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")


class City(BaseModel):
    city: str
    people: int


class TestContract(AdapterContract):
    @pytest.fixture
    def framework(self) -> Framework:
        llm = OpenAI(model="gpt-4o", max_retries=0)

        async def chat(text: str) -> str:
            return str((await llm.achat([ChatMessage(text)])).message.content)

        def blocking(text: str) -> str:
            return str(llm.chat([ChatMessage(text)]).message.content)

        async def stream(text: str) -> AsyncIterator[str]:
            async for piece in await llm.astream_chat([ChatMessage(text)]):
                yield piece.delta or ""

        async def usage(text: str) -> tuple[int, int]:
            raw = (await llm.achat([ChatMessage(text)])).raw
            assert raw is not None
            return raw.usage.prompt_tokens, raw.usage.completion_tokens

        async def structured(text: str) -> dict[str, Any]:
            return (await llm.astructured_predict(City, PromptTemplate(text))).model_dump()

        async def agent(name: str, text: str, tools: Sequence[Tool]) -> str:
            output = await FunctionAgent(name=name, tools=[*tools], llm=llm).run(text)
            return str(output.response.content)

        return Framework("llamaindex", chat, blocking, stream, usage, structured, agent)
