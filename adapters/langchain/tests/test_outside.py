"""Outside of an agent, and after `deactivate`, LangChain is as it was."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore

import aios_adapters as aios
from aios_adapters import host
from aios_adapters.testing import KernelHandle


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def test_nothing_is_rerouted(fake_kernel: KernelHandle) -> None:
    model = FakeListChatModel(responses=["canned"])
    assert model.invoke("say x").content == "canned"
    assert (await model.ainvoke("say x")).content == "canned"
    assert "".join(chunk.text for chunk in model.stream("say x")) == "canned"
    assert "".join([chunk.text async for chunk in model.astream("say x")]) == "canned"
    assert add.invoke({"a": 1, "b": 2}) == 3
    saver, store = InMemorySaver(), InMemoryStore()
    assert saver.get_tuple({"configurable": {"thread_id": "1"}}) is None
    store.put(("a",), "k", {"v": 1})
    assert fake_kernel.ps() == []
    assert fake_kernel.spans() == []


async def test_a_missing_key_is_reported_at_the_first_call(
    fake_kernel: KernelHandle, model: ChatOpenAI, network_attempts: list[Any]
) -> None:
    with pytest.raises(openai.OpenAIError, match="OPENAI_API_KEY"):
        model.invoke("hi")
    with pytest.raises(openai.OpenAIError, match="OPENAI_API_KEY"):
        await model.ainvoke("hi")
    assert network_attempts == []


def test_with_a_key_the_network_is_tried(monkeypatch: pytest.MonkeyPatch, network_attempts: list[Any]) -> None:
    model = ChatOpenAI(model="gpt-4o", api_key="sk-unused", max_retries=0)  # type: ignore[arg-type]
    with pytest.raises(openai.APIConnectionError):
        model.invoke("hi")
    assert network_attempts


def test_after_the_agents_run(fake_kernel: KernelHandle) -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage("first"), AIMessage("second")]))

    @aios.agent(name="inside")
    def ask() -> Any:
        return model.invoke("say kernel").content

    assert model.invoke("say x").content == "first"
    assert ask() == "kernel"
    assert model.invoke("say x").content == "second"


LEAVES = ("_generate", "_agenerate", "_stream", "_astream", "_run", "_arun", "run", "arun")


def family(base: type) -> list[type]:
    found = [base]
    for cls in found:
        found.extend(child for child in cls.__subclasses__() if child not in found)
    return found


def patched() -> list[str]:
    classes = [*family(BaseChatModel), *family(BaseLLM), *family(BaseTool), InMemorySaver, InMemoryStore]
    names = (*LEAVES, "get_tuple", "put", "batch", "abatch")
    return [
        f"{cls.__qualname__}.{name}"
        for cls in classes
        for name in names
        if hasattr(vars(cls).get(name), "__aios_original__")
    ]


@pytest.fixture
def switched_off() -> Iterator[None]:
    host().deactivate()
    yield
    host().activate()
    assert "ChatOpenAI._stream" in patched()


def test_deactivate_takes_every_patch_back(switched_off: None) -> None:
    assert patched() == []
    assert "__pydantic_init_subclass__" not in vars(BaseChatModel)

    class Later(FakeListChatModel):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            return super()._generate(*args, **kwargs)

    assert not hasattr(Later._generate, "__aios_original__")
    with aios.running("nobody", kernel="off"):
        assert Later(responses=["canned"]).invoke("say x").content == "canned"


def test_signatures_stay() -> None:
    for method in (ChatOpenAI._generate, FakeListChatModel._call, BaseTool.run, InMemorySaver.put, InMemoryStore.batch):
        original = getattr(method, "__aios_original__", method)
        assert inspect.signature(method) == inspect.signature(original)
        assert inspect.iscoroutinefunction(method) == inspect.iscoroutinefunction(original)
