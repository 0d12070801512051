"""`ListMemory` is kept by the kernel; other memories stay, and their use passes the kernel."""

from __future__ import annotations

import asyncio
import contextvars
from pathlib import Path
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import MemoryQueryEvent
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import Image
from autogen_core.memory import (
    ListMemory,
    Memory,
    MemoryContent,
    MemoryMimeType,
    MemoryQueryResult,
    UpdateContextResult,
)
from autogen_core.model_context import UnboundedChatCompletionContext
from autogen_ext.models.openai import OpenAIChatCompletionClient
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

import aios_adapters as aios
from aios_adapter_autogen.contents import content_of, note_of
from aios_adapters._kernel import close_links
from aios_adapters.testing import KernelHandle
from aios_kernel.client import stop_in_process
from aios_kernel.config import load
from aios_kernel.syscalls import MemorySearch, Note, Notes


def text(content: str) -> MemoryContent:
    return MemoryContent(content=content, mime_type=MemoryMimeType.TEXT)


async def listed(memory: Memory) -> list[Any]:
    return [item.content for item in (await memory.query("")).results]


def notes(kernel: KernelHandle, agent: str, namespace: str) -> list[str]:
    with aios.running(agent) as scope:
        assert scope is not None
        return [note.text for note in scope.call(MemorySearch(namespace=namespace, k=100), Notes).notes]


def syscalls(kernel: KernelHandle) -> list[str]:
    return [span.syscall for span in kernel.spans() if span.syscall.startswith("memory.")]


async def test_what_an_agent_remembers_outlives_the_object(fake_kernel: KernelHandle) -> None:
    with aios.running("alice"):
        memory = ListMemory(name="facts")
        for fact in ("one", "two", "three"):
            await memory.add(text(fact))
        assert await listed(memory) == ["one", "two", "three"]
    with aios.running("alice"):
        again = ListMemory(name="facts")
        assert await listed(again) == ["one", "two", "three"]
        assert [item.content for item in again.content] == ["one", "two", "three"]
        assert await listed(ListMemory(name="other")) == []
    with aios.running("bob"):
        assert await listed(ListMemory(name="facts")) == []
    assert notes(fake_kernel, "alice", "agent/alice/autogen/facts") == ["one", "two", "three"]


async def test_each_access_is_a_syscall(fake_kernel: KernelHandle) -> None:
    with aios.running("alice"):
        memory = ListMemory()
        await memory.add(text("one"))
        await memory.query("")
        await memory.update_context(UnboundedChatCompletionContext())
        await memory.clear()
    assert syscalls(fake_kernel) == ["memory.search", "memory.add", "memory.search", "memory.search", "memory.delete"]


async def test_a_program_that_fills_its_memory_finds_it_as_written(fake_kernel: KernelHandle) -> None:
    """Twice the same in one run is kept twice; the same in the next run is not new."""
    for _ in range(3):
        with aios.running("alice"):
            memory = ListMemory()
            for fact in ("pizza", "tea", "pizza"):
                await memory.add(text(fact))
            assert await listed(memory) == ["pizza", "tea", "pizza"]


async def test_what_was_there_before_the_scope(fake_kernel: KernelHandle) -> None:
    memory = ListMemory(memory_contents=[text("given")])
    await memory.add(text("added outside"))
    with aios.running("alice"):
        assert await listed(memory) == ["given", "added outside"]
        await memory.add(text("added inside"))
    assert await listed(memory) == ["given", "added outside", "added inside"]
    await memory.add(text("added after"))
    with aios.running("alice"):
        assert await listed(memory) == ["given", "added outside", "added inside", "added after"]
    next_process = ListMemory(memory_contents=[text("given"), text("new")])
    await next_process.add(text("added outside"))
    with aios.running("alice"):
        assert await listed(next_process) == ["given", "added outside", "added inside", "added after", "new"]


async def test_the_list_is_assigned_and_cleared(fake_kernel: KernelHandle) -> None:
    with aios.running("alice"):
        memory = ListMemory()
        for fact in ("a", "b", "c"):
            await memory.add(text(fact))
        memory.content = [memory.content[2], text("d"), memory.content[0]]
        assert await listed(memory) == ["c", "d", "a"]
        assert notes(fake_kernel, "alice", "agent/alice/autogen/default_list_memory") == ["c", "d", "a"]
        await memory.clear()
        assert memory.content == []
        await memory.add(text("e"))
    with aios.running("alice"):
        assert await listed(ListMemory()) == ["e"]


async def test_clearing_at_once_clears_what_was_kept(fake_kernel: KernelHandle) -> None:
    with aios.running("alice"):
        await ListMemory().add(text("old"))
    with aios.running("alice"):
        memory = ListMemory()
        await memory.clear()
        assert await listed(memory) == []


async def test_lists_of_one_name_stay_apart(fake_kernel: KernelHandle) -> None:
    for _ in range(2):
        with aios.running("alice"):
            first, second = ListMemory(), ListMemory()
            await first.add(text("first"))
            await second.add(text("second"))
            assert await listed(first) == ["first"]
            assert await listed(second) == ["second"]


async def test_a_shared_object_shares_its_contents(fake_kernel: KernelHandle) -> None:
    shared = ListMemory()
    with aios.running("alice"):
        await shared.add(text("from alice"))
    with aios.running("bob"):
        await shared.add(text("from bob"))
    with aios.running("alice"):
        assert await listed(shared) == ["from alice", "from bob"]
    await shared.clear()
    with aios.running("alice"):
        assert await listed(shared) == []
    assert notes(fake_kernel, "alice", "agent/alice/autogen/default_list_memory") == []


async def test_concurrent_adds_are_all_kept(fake_kernel: KernelHandle) -> None:
    with aios.running("alice"):
        memory = ListMemory()
        await asyncio.gather(*(memory.add(text(str(number))) for number in range(20)), memory.query(""))
        assert sorted(await listed(memory), key=int) == [str(number) for number in range(20)]


async def test_another_program_of_the_agent_is_heard(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice")
    async def another() -> None:
        await ListMemory().add(text("another's"))

    with aios.running("alice"):
        memory = ListMemory()
        await memory.add(text("mine"))
        await asyncio.create_task(another(), context=contextvars.Context())
        assert await listed(memory) == ["mine", "another's"]


async def test_another_kernel_gets_the_list_too(
    fake_kernel: KernelHandle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = ListMemory()
    with aios.running("alice"):
        await memory.add(text("one"))
    monkeypatch.setenv("AIOS_HOME", str(tmp_path / "second"))
    try:
        with aios.running("alice"):
            assert await listed(memory) == ["one"]
            assert await listed(memory) == ["one"]
        with aios.running("alice"):
            assert await listed(ListMemory()) == ["one"]
    finally:
        close_links()
        await asyncio.to_thread(stop_in_process, load())


@pytest.mark.parametrize(
    "content",
    [
        MemoryContent(content="plain", mime_type=MemoryMimeType.MARKDOWN, metadata={"n": 1, "deep": {"x": [1, None]}}),
        MemoryContent(content='{"not": "parsed"}', mime_type=MemoryMimeType.JSON),
        MemoryContent(content={"a": [1, 2], "b": None}, mime_type=MemoryMimeType.JSON, metadata={}),
        MemoryContent(content=b"\x00\xff", mime_type=MemoryMimeType.BINARY),
        MemoryContent(content="own", mime_type="text/x-own"),
        MemoryContent(content="", mime_type="text/plain"),
    ],
)
async def test_contents_come_back_as_they_were(fake_kernel: KernelHandle, content: MemoryContent) -> None:
    with aios.running("alice"):
        await ListMemory().add(content)
    with aios.running("alice"):
        (back,) = (await ListMemory().query("")).results
    assert back == content
    assert type(back.content) is type(content.content)
    assert type(back.mime_type) is type(content.mime_type)


async def test_an_image_comes_back(fake_kernel: KernelHandle) -> None:
    picture = PILImage.new("RGB", (3, 2), (10, 20, 30))
    for _ in range(2):  # in the second run the same image is the same item
        with aios.running("alice"):
            memory = ListMemory()
            await memory.add(MemoryContent(content=Image(picture), mime_type=MemoryMimeType.IMAGE))
    with aios.running("alice"):
        (back,) = (await ListMemory().query("")).results
    assert isinstance(back.content, Image)
    assert back.content.image.tobytes() == picture.tobytes()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(), json_values, max_size=3)


@settings(deadline=None)  # the machine may be busy
@given(
    content=st.text() | st.binary() | objects,
    mime=st.sampled_from(MemoryMimeType) | st.text(),
    metadata=st.none() | objects,
)
def test_a_note_says_all_of_a_content(content: Any, mime: Any, metadata: Any) -> None:
    item = MemoryContent(content=content, mime_type=mime, metadata=metadata)
    kept = note_of(item, "agent/x")
    back = content_of(Note("1", "agent/x", kept.text, "x", kept.metadata))
    assert back == item
    assert type(back.content) is type(item.content)
    assert note_of(back, "agent/x") == kept


# --- in agents ------------------------------------------------------------------------------------------------------


async def test_an_agent_is_told_what_it_remembers(
    fake_kernel: KernelHandle, client: OpenAIChatCompletionClient
) -> None:
    memory = ListMemory()
    await memory.add(text("likes pizza"))
    agent = aios.agent(AssistantAgent("helper", client, memory=[memory]), name="alice")
    result = await agent.run(task="say hello")
    events = [message for message in result.messages if isinstance(message, MemoryQueryEvent)]
    assert [item.content for event in events for item in event.content] == ["likes pizza"]
    context = await agent.model_context.get_messages()
    assert any("1. likes pizza" in str(message.content) for message in context)
    assert notes(fake_kernel, "alice", "agent/alice/helper/autogen/default_list_memory") == ["likes pizza"]


async def test_agents_of_a_team_have_their_own(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    mine, yours = ListMemory(), ListMemory()
    await mine.add(text("mine"))
    await yours.add(text("yours"))
    members = [AssistantAgent("one", client, memory=[mine]), AssistantAgent("two", client, memory=[yours])]
    team = aios.agent(RoundRobinGroupChat(list(members), max_turns=2), name="team")
    await team.run(task="say x")
    assert notes(fake_kernel, "team", "agent/team/one/autogen/default_list_memory") == ["mine"]
    assert notes(fake_kernel, "team", "agent/team/two/autogen/default_list_memory") == ["yours"]


# --- other memories and other modes ---------------------------------------------------------------------------------


class Shelf(Memory):
    """A memory that lives somewhere else, written by a user."""

    component_type = "memory"

    def __init__(self) -> None:
        self.items: list[MemoryContent] = []

    async def add(self, content: MemoryContent, cancellation_token: Any = None) -> None:
        self.items.append(content)

    async def query(self, query: Any, cancellation_token: Any = None, **kwargs: Any) -> MemoryQueryResult:
        return MemoryQueryResult(results=self.items[: kwargs.get("limit", 10)])

    async def update_context(self, model_context: Any) -> UpdateContextResult:
        return UpdateContextResult(memories=await self.query(""))

    async def clear(self) -> None:
        self.items.clear()

    async def close(self) -> None: ...


class Deduplicating(ListMemory):
    async def add(self, content: MemoryContent, cancellation_token: Any = None) -> None:
        if content not in self.content:
            await super().add(content, cancellation_token)


async def test_another_memory_is_mediated(fake_kernel: KernelHandle) -> None:
    memory = Shelf()
    await memory.add(text("outside"))
    assert fake_kernel.ps() == []
    with aios.running("alice"):
        await memory.add(content=text("inside"))
        assert [item.content for item in (await memory.query("x", limit=1)).results] == ["outside"]
        result = await memory.update_context(UnboundedChatCompletionContext())
        await memory.clear()
    assert len(result.memories.results) == 2
    assert syscalls(fake_kernel) == ["memory.add", "memory.search", "memory.search", "memory.add"]
    assert {span.detail for span in fake_kernel.spans() if span.syscall.startswith("memory.")} == {
        "agent/alice/mediated/Shelf"
    }


async def test_a_subclass_keeps_its_own_rule(fake_kernel: KernelHandle) -> None:
    for _ in range(2):
        with aios.running("alice"):
            memory = Deduplicating()
            await memory.query("")
            for _ in range(2):
                await memory.add(text("once"))
            assert await listed(memory) == ["once"]


async def test_memory_options(fake_kernel: KernelHandle) -> None:
    for mode in ("mediated", "off"):
        with aios.running("alice", memory=mode):
            memory = ListMemory()
            await memory.add(text(mode))
            assert await listed(memory) == [mode]
    with aios.running("alice"):
        assert await listed(ListMemory()) == []
    mediated = [row.memory_calls for row in fake_kernel.ps()][:2]
    assert mediated[0] == 2
    assert len([row for row in fake_kernel.ps() if row.memory_calls]) == 2
