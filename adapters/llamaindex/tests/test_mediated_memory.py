"""Memory that stays where it is, and the options of the decorator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.base.llms.types import TextBlock
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.memory import (
    BaseMemory,
    ChatMemoryBuffer,
    ChatSummaryMemoryBuffer,
    FactExtractionMemoryBlock,
    Memory,
    SimpleComposableMemory,
    StaticMemoryBlock,
)
from llama_index.core.storage.chat_store import BaseChatStore

import aios_adapters as aios
from aios_adapters.testing import KernelHandle

Make = Callable[[], BaseMemory]


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def assistant(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


def texts(messages: list[ChatMessage]) -> list[str | None]:
    return [message.content for message in messages]


def named_memory() -> BaseMemory:
    return Memory.from_defaults(session_id="talk", token_limit=1000)


def named_buffer() -> BaseMemory:
    return ChatMemoryBuffer.from_defaults(chat_store_key="talk", token_limit=1000)


BOTH = pytest.mark.parametrize("make", [named_memory, named_buffer])


def memory_calls(kernel: KernelHandle) -> list[tuple[str, str]]:
    return [(span.syscall, span.detail) for span in kernel.spans() if span.syscall.startswith("memory.")]


async def test_memory_blocks_are_mediated(fake_kernel: KernelHandle) -> None:
    blocks = [
        StaticMemoryBlock(name="static", static_content=[TextBlock(text="I am fixed")]),
        FactExtractionMemoryBlock(name="facts", llm=MockLLM()),
    ]

    @aios.agent(name="blocks")
    async def run() -> str:
        memory = Memory.from_defaults(session_id="b", memory_blocks=blocks, token_limit=60, token_flush_size=10)
        for n in range(4):
            await memory.aput(user(f"{n} " + "word " * 12))
            await memory.aput(assistant("ok"))
        return str((await memory.aget())[0].content)

    assert "I am fixed" in await run()
    details = {detail for _, detail in memory_calls(fake_kernel)}
    assert "agent/blocks/mediated/StaticMemoryBlock" in details
    assert "agent/blocks/mediated/FactExtractionMemoryBlock" in details
    assert fake_kernel.ps()[0].llm_calls > 0, "the block's own LLM is rerouted too"


def test_a_summary_buffer_asks_the_kernels_model(fake_kernel: KernelHandle) -> None:
    with aios.running("summary"):
        memory = ChatSummaryMemoryBuffer.from_defaults(llm=MockLLM(), token_limit=20, chat_store_key="s")
        for n in range(4):
            memory.put(user(f"{n} word word word word word"))
            memory.put(assistant("ok"))
        assert memory.get()[0].role == "system"
    assert fake_kernel.ps()[0].llm_calls > 0


async def test_a_composable_memory(fake_kernel: KernelHandle) -> None:
    with aios.running("composed"):
        memory = SimpleComposableMemory.from_defaults(primary_memory=named_buffer())
        memory.put(user("x"))
        assert texts(named_buffer().get()) == ["x"]
        assert texts(memory.get()) == ["x"]


class ListStore(BaseChatStore):
    """A chat store of the user's own."""

    kept: list[ChatMessage] = []

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        self.kept = list(messages)

    def get_messages(self, key: str) -> list[ChatMessage]:
        return self.kept

    def add_message(self, key: str, message: ChatMessage) -> None:
        self.kept.append(message)

    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        kept, self.kept = self.kept, []
        return kept

    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        return self.kept.pop(idx)

    def delete_last_message(self, key: str) -> ChatMessage | None:
        return self.kept.pop()

    def get_keys(self) -> list[str]:
        return ["only"]


async def test_another_store_is_mediated_once_a_call(fake_kernel: KernelHandle) -> None:
    memory = ChatMemoryBuffer.from_defaults(chat_store=ListStore(), token_limit=1000)
    with aios.running("mediated"):
        memory.put(user("a"))
        await memory.aput(assistant("b"))
        assert texts(memory.get()) == texts(await memory.aget_all()) == ["a", "b"]
    assert memory_calls(fake_kernel) == [
        ("memory.add", "agent/mediated/mediated/ListStore"),
        ("memory.add", "agent/mediated/mediated/ListStore"),
        ("memory.search", "agent/mediated/mediated/ListStore"),
        ("memory.search", "agent/mediated/mediated/ListStore"),
    ]


async def test_a_database_on_disk_is_mediated(fake_kernel: KernelHandle, tmp_path: Any) -> None:
    uri = f"sqlite+aiosqlite:///{tmp_path}/chat.db"
    with aios.running("disk"):
        await Memory.from_defaults(session_id="d", async_database_uri=uri).aput(user("kept"))
    assert texts(await Memory.from_defaults(session_id="d", async_database_uri=uri).aget()) == ["kept"]
    assert {detail for _, detail in memory_calls(fake_kernel)} == {"agent/disk/mediated/SQLAlchemyChatStore"}


@BOTH
async def test_memory_options_of_the_decorator(fake_kernel: KernelHandle, make: Make) -> None:
    with aios.running("off", memory="off"):
        memory = make()
        await memory.aput(user("a"))
        assert texts(await memory.aget()) == ["a"]
        assert await make().aget() == []
    assert memory_calls(fake_kernel) == []
    with aios.running("aside", memory="mediated"):
        memory = make()
        await memory.aput(user("a"))
        assert texts(await memory.aget()) == ["a"]
        assert await make().aget() == []
    assert {detail.rsplit("/", 1)[0] for _, detail in memory_calls(fake_kernel)} == {"agent/aside/mediated"}


@BOTH
async def test_outside_a_scope_the_kernel_is_not_asked(fake_kernel: KernelHandle, make: Make) -> None:
    memory = make()
    await memory.aput(user("a"))
    assert texts(await memory.aget()) == ["a"]
    assert await make().aget() == []
    assert fake_kernel.ps() == []
