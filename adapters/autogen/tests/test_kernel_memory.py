"""`KernelMemory`: found by meaning, an agent's own or its group's."""

from __future__ import annotations

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import MemoryQueryEvent
from autogen_core.memory import MemoryContent, MemoryMimeType
from autogen_ext.models.openai import OpenAIChatCompletionClient

import aios_adapters as aios
from aios_adapter_autogen.kernel_memory import KernelMemory
from aios_adapters.testing import KernelHandle
from aios_kernel.errors import InvalidRequest

FACTS = ["the train to Rome leaves at nine", "cats sleep all day", "the invoice was paid in March"]


def content(text: str) -> MemoryContent:
    return MemoryContent(content=text, mime_type=MemoryMimeType.TEXT)


async def test_the_nearest_is_found_in_a_later_run(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice")
    async def learn() -> None:
        for fact in FACTS:
            await KernelMemory("facts").add(content(fact))

    @aios.agent(name="alice")
    async def recall(name: str) -> list[object]:
        found = await KernelMemory(name, k=1).query("when does the train leave?")
        return [each.content for each in found.results]

    await learn()
    assert await recall("facts") == [FACTS[0]]
    assert await recall("other") == []
    # One syscall an access: nothing is mediated on top.
    assert sorted(row.memory_calls for row in fake_kernel.ps()) == [1, 1, 3]


async def test_an_agent_is_told_what_is_near(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    memory = KernelMemory(k=1)
    agent = AssistantAgent("helper", client, memory=[memory])
    with aios.running("alice"):
        for fact in FACTS:
            await memory.add(content(fact))
        result = await agent.run(task="do cats sleep?")
    (told,) = [message for message in result.messages if isinstance(message, MemoryQueryEvent)]
    assert [each.content for each in told.content] == [FACTS[1]]


async def test_shared_notes_are_the_groups(fake_kernel: KernelHandle) -> None:
    with aios.running("alice"):
        await KernelMemory(shared=True).add(content(FACTS[1]))
        with pytest.raises(InvalidRequest, match="not one memory's"):
            await KernelMemory(shared=True).clear()
    with aios.running("bob"):
        found = await KernelMemory(shared=True).query("cats")
        assert [each.content for each in found.results] == [FACTS[1]]
        assert aios.memory.search("cats")[0].text == FACTS[1]


async def test_clearing_and_no_agent(fake_kernel: KernelHandle) -> None:
    with aios.running("alice"):
        memory = KernelMemory()
        await memory.add(content("x"))
        await memory.clear()
        assert (await memory.query("")).results == []
        await memory.close()
    with pytest.raises(InvalidRequest, match="none is on"):
        await KernelMemory().query("x")
