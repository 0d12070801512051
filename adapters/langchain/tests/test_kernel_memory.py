"""The savers and stores that live in the kernel openly."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

import aios_adapters as aios
from aios_adapter_langchain import KernelCheckpointSaver, KernelStore
from aios_adapters.testing import KernelHandle
from aios_kernel.errors import InvalidRequest

THREAD: Any = {"configurable": {"thread_id": "t"}}


def count(saver: KernelCheckpointSaver, model: ChatOpenAI) -> int:
    graph = create_agent(model, [], checkpointer=saver)
    return len(graph.invoke({"messages": [HumanMessage("say hi")]}, THREAD)["messages"])


def test_a_conversation_is_found_by_name_whatever_memory_says(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    @aios.agent(name="alice", memory="mediated")
    def talk(*names: str) -> list[int]:
        return [count(KernelCheckpointSaver(name), model) for name in names]

    assert talk("trips", "work") == [2, 2]
    assert talk("work", "trips", "new") == [4, 4, 2]  # in another order


def test_items_are_found_by_name(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice", memory="off")
    def put() -> None:
        KernelStore("facts").put(("a",), "k", {"v": 1})

    @aios.agent(name="alice", memory="off")
    def get(name: str) -> object:
        item = KernelStore(name).get(("a",), "k")
        return item and item.value

    put()
    assert (get("facts"), get("other")) == ({"v": 1}, None)


def test_outside_of_agents_they_are_those_of_an_agent_of_their_own(fake_kernel: KernelHandle) -> None:
    KernelStore().put(("a",), "k", {"v": 1})
    assert KernelStore().get(("a",), "k") is not None
    assert KernelStore(agent="somebody").get(("a",), "k") is None


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 61])
def test_names_that_are_none(name: str) -> None:
    for kind in (KernelCheckpointSaver, KernelStore):
        with pytest.raises(InvalidRequest, match="cannot name"):
            kind(name)
