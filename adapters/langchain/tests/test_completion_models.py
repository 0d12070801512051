from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.language_models.llms import LLM
from langchain_openai import OpenAI

import aios_adapters as aios
from aios_adapters.testing import KernelHandle


class Own(LLM):
    """A model class that a program brings along."""

    @property
    def _llm_type(self) -> str:
        return "own"

    def _call(self, prompt: str, *args: Any, **kwargs: Any) -> str:
        return f"own answer to {prompt}"


@pytest.fixture(params=[OpenAI, Own, lambda: FakeListLLM(responses=["canned"])], ids=["OpenAI", "Own", "FakeListLLM"])
def llm(request: pytest.FixtureRequest) -> Any:
    return request.param()


async def test_invoke_batch_and_limits(fake_kernel: KernelHandle, llm: Any) -> None:
    @aios.agent(name="completes")
    async def ask() -> list[Any]:
        return [
            llm.invoke("say hello"),
            await llm.ainvoke("say hello"),
            llm.batch(["say a", "say b"]),
            llm.invoke("think 9", stop=["w2"]).strip(),
        ]

    assert await ask() == ["hello", "hello", ["a", "b"], "w0 w1"]
    assert sum(program.llm_calls for program in fake_kernel.ps()) == 5


async def test_streaming(fake_kernel: KernelHandle) -> None:
    llm = OpenAI()

    @aios.agent(name="completes")
    async def ask() -> list[list[str]]:
        return [list(llm.stream("think 3")), [word async for word in llm.astream("think 3")]]

    for words in await ask():
        assert [word for word in words if word] == ["w0", " w1", " w2"]


def test_usage(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="completes")
    def ask() -> Any:
        return OpenAI().generate(["say a b c", "say d"])

    result = ask()
    assert [generations[0].text for generations in result.generations] == ["a b c", "d"]
    assert result.llm_output["token_usage"]["completion_tokens"] == fake_kernel.ps()[0].completion_tokens


def test_outside_of_an_agent(fake_kernel: KernelHandle) -> None:
    assert Own().invoke("x") == "own answer to x"
    assert FakeListLLM(responses=["canned"]).invoke("say x") == "canned"
