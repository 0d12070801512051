"""The contract suite, for LangChain and LangGraph."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from aios_adapters.contract import AdapterContract, Framework, Tool


class City(BaseModel):
    city: str
    people: int


class TestContract(AdapterContract):
    @pytest.fixture
    def framework(self, model: ChatOpenAI) -> Framework:
        async def chat(text: str) -> str:
            return (await model.ainvoke(text)).text

        def blocking(text: str) -> str:
            return model.invoke(text).text

        async def stream(text: str) -> AsyncIterator[str]:
            async for chunk in model.astream(text):
                yield chunk.text

        async def usage(text: str) -> tuple[int, int]:
            counted = (await model.ainvoke(text)).usage_metadata
            assert counted is not None
            return counted["input_tokens"], counted["output_tokens"]

        async def structured(text: str) -> dict[str, Any]:
            answer = await model.with_structured_output(City).ainvoke(text)
            assert isinstance(answer, City)
            return answer.model_dump()

        async def agent(name: str, text: str, tools: Sequence[Tool]) -> str:
            graph = create_agent(model, [*tools], name=name)
            return (await graph.ainvoke({"messages": text}))["messages"][-1].text

        return Framework("langchain", chat, blocking, stream, usage, structured, agent)
