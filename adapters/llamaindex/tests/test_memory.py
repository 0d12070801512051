"""Memory: what lives in the process is kept by the kernel, the rest passes it; the framework's semantics stay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.base.llms.types import TextBlock, ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import (
    BaseMemory,
    ChatMemoryBuffer,
    Memory,
)
from llama_index.core.storage.chat_store import SimpleChatStore
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel.errors import AccessDenied
from aios_kernel.syscalls import MemorySearch, Notes

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


@BOTH
async def test_every_method(fake_kernel: KernelHandle, make: Make) -> None:
    @aios.agent(name="methods")
    async def run() -> None:
        memory = make()
        memory.put(user("a"))
        await memory.aput(assistant("b"))
        memory.put_messages([user("c"), assistant("d")])
        await memory.aput_messages([user("e")])
        assert texts(memory.get()) == texts(await memory.aget()) == ["a", "b", "c", "d", "e"]
        assert texts(memory.get_all()) == texts(await memory.aget_all()) == ["a", "b", "c", "d", "e"]
        memory.set([user("x")])
        assert texts(await memory.aget_all()) == ["x"]
        await memory.aset([user("y"), assistant("z")])
        assert texts(memory.get_all()) == ["y", "z"]
        memory.reset()
        assert memory.get_all() == []
        await memory.aput(user("again"))
        await memory.areset()
        assert await memory.aget() == []

    await run()
    assert all(detail.startswith("agent/methods/llamaindex/") for _, detail in memory_calls(fake_kernel))


@BOTH
async def test_a_named_chat_survives_its_objects(fake_kernel: KernelHandle, make: Make) -> None:
    call = ToolCallBlock(tool_call_id="c", tool_name="add", tool_kwargs={"a": 1})
    told = [
        user("ünï\n2"),
        ChatMessage(role="assistant", blocks=[TextBlock(text="x"), call], additional_kwargs={"n": [1, {"k": None}]}),
        ChatMessage(role="tool", content="2", additional_kwargs={"tool_call_id": "c"}),
    ]

    @aios.agent(name="survivor")
    async def write() -> None:
        await make().aput_messages(told)

    @aios.agent(name="survivor")
    async def read() -> list[ChatMessage]:
        return await make().aget()

    await write()
    assert await read() == told


@BOTH
async def test_two_objects_see_each_others_writes(fake_kernel: KernelHandle, make: Make) -> None:
    @aios.agent(name="pair")
    async def run() -> None:
        one, other = make(), make()
        await one.aput(user("1"))
        await other.aput(assistant("2"))
        assert texts(await one.aget()) == ["1", "2"]
        await one.aput(user("3"))
        assert texts(await other.aget()) == ["1", "2", "3"]
        await other.areset()
        assert await one.aget() == []

    await run()


@BOTH
async def test_writes_outside_a_scope_are_not_lost(fake_kernel: KernelHandle, make: Make) -> None:
    memory = make()
    await memory.aput(user("before"))

    @aios.agent(name="mixed")
    async def read() -> list[str | None]:
        return texts(await memory.aget())

    assert await read() == ["before"]
    await memory.aput(assistant("between"))
    assert await read() == ["before", "between"]
    await memory.aset([user("anew")])
    assert await read() == ["anew"]
    assert texts(await memory.aget()) == ["anew"]
    other = make()

    @aios.agent(name="mixed")
    async def read_other() -> list[str | None]:
        return texts(await other.aget())

    assert await read_other() == ["anew"]


@BOTH
async def test_agents_do_not_see_each_others_chats(fake_kernel: KernelHandle, make: Make) -> None:
    with aios.running("alice") as alice:
        assert alice is not None
        await make().aput(user("secret"))
    with aios.running("bob") as bob:
        assert bob is not None
        assert await make().aget() == []
        with pytest.raises(AccessDenied):
            await bob.acall(MemorySearch(namespace="agent/alice/llamaindex"), Notes)


async def test_an_object_that_two_agents_share_stays_shared(fake_kernel: KernelHandle) -> None:
    memory = ChatMemoryBuffer.from_defaults(token_limit=1000)
    with aios.running("alice"):
        memory.put(user("from alice"))
    with aios.running("bob"):
        memory.put(assistant("from bob"))
    with aios.running("alice"):
        assert texts(memory.get()) == ["from alice", "from bob"]


async def test_chats_without_a_name_are_their_objects_alone(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="nameless")
    async def run() -> None:
        one, other = (ChatMemoryBuffer.from_defaults(token_limit=1000) for _ in range(2))
        one.put(user("mine"))
        assert other.get() == []
        assert texts(one.get()) == ["mine"]
        del one
        other.put(user("x"))  # with this call the collected store's rows go

    await run()
    deleted = [detail for name, detail in memory_calls(fake_kernel) if name == "memory.delete"]
    assert len(deleted) == 1
    assert "/unnamed/" in deleted[0]


def test_a_buffer_hands_out_the_objects_it_was_given(fake_kernel: KernelHandle) -> None:
    memory, message = ChatMemoryBuffer.from_defaults(token_limit=1000), user("as it is")
    with aios.running("same"):
        memory.put(message)
        assert memory.get()[0] is message
        message.blocks = [TextBlock(text="changed in place")]
        assert texts(memory.get()) == ["changed in place"]


def test_token_limits_are_the_frameworks_own(fake_kernel: KernelHandle) -> None:
    words = [user(" ".join(["word"] * 40)) if n % 2 == 0 else assistant("ok") for n in range(10)]

    def held(memory: BaseMemory) -> list[str | None]:
        for message in words:
            memory.put(message)
        return texts(memory.get())

    for make in (
        lambda: ChatMemoryBuffer.from_defaults(token_limit=100),
        lambda: Memory.from_defaults(token_limit=100, token_flush_size=20, chat_history_token_ratio=0.9),
    ):
        native = held(make())
        assert 0 < len(native) < len(words)
        with aios.running("limited"):
            assert held(make()) == native


async def test_archived_messages_stay_archived(fake_kernel: KernelHandle) -> None:
    def make() -> Memory:
        return Memory.from_defaults(session_id="long", token_limit=60, token_flush_size=10)

    @aios.agent(name="archive")
    async def write() -> tuple[list[Any], list[Any]]:
        memory = make()
        for n in range(6):
            await memory.aput(user(f"{n} " + "word " * 12))
            await memory.aput(assistant("ok"))
        return await memory.aget(), await memory.aget_all(status=MessageStatus.ARCHIVED)

    @aios.agent(name="archive")
    async def read() -> tuple[list[Any], list[Any]]:
        memory = make()
        return await memory.aget(), await memory.aget_all(status=MessageStatus.ARCHIVED)

    active, archived = await write()
    assert active
    assert archived
    assert await read() == (active, archived)


async def test_the_stores_own_methods(fake_kernel: KernelHandle) -> None:
    with aios.running("simple"):
        store = SimpleChatStore()
        store.set_messages("k", [user("a"), user("b"), user("c")])
        store.add_message("k", user("first"), idx=0)
        assert store.delete_message("k", 1) == user("a")
        assert store.delete_last_message("k") == user("c")
        again = SimpleChatStore()
        assert texts(again.get_messages("k")) == ["first", "b"]
        assert texts(await again.aget_messages("k")) == ["first", "b"]
        assert store.delete_messages("k") == [user("first"), user("b")]
        assert store.get_keys() == []
        assert SimpleChatStore().get_messages("k") == []
        assert store.delete_message("nothing", 0) is None

    with aios.running("sql"):
        sql = SQLAlchemyChatStore("t")
        await sql.add_messages("k", [user("a"), user("b"), user("c"), user("d")])
        assert texts(await sql.get_messages("k", limit=2, offset=1)) == ["b", "c"]
        assert await sql.count_messages("k") == 4
        assert texts(await sql.delete_oldest_messages("k", 1)) == ["a"]
        assert texts(await sql.archive_oldest_messages("k", 1)) == ["b"]
        other = SQLAlchemyChatStore("t")
        assert texts(await other.get_messages("k")) == ["c", "d"]
        assert texts(await other.get_messages("k", status=MessageStatus.ARCHIVED)) == ["b"]
        assert await other.get_keys() == ["k"]
        await sql.delete_messages("k", status=MessageStatus.ARCHIVED)
        assert texts(await other.get_messages("k", status=None)) == ["c", "d"]


async def test_one_put_is_one_write(fake_kernel: KernelHandle) -> None:
    with aios.running("frugal"):
        memory = named_buffer()
        memory.get()
        for n in range(3):
            memory.put(user(str(n)))
    assert [name for name, _ in memory_calls(fake_kernel)] == ["memory.search", *["memory.add"] * 3]


@BOTH
async def test_concurrent_writes_are_all_kept(fake_kernel: KernelHandle, make: Make) -> None:
    @aios.agent(name="crowd")
    async def run() -> None:
        memory = make()
        await asyncio.gather(*(memory.aput(user(str(n))) for n in range(20)))
        assert sorted(texts(await make().aget()), key=str) == sorted(map(str, range(20)))

    await run()


async def test_awkward_keys(fake_kernel: KernelHandle) -> None:
    with aios.running("awkward"):
        for key in ("", ".", "..", "a/b", "ü ?", "x" * 400):
            SimpleChatStore().add_message(key, user(f"of {key[:5]}"))
        for key in ("", ".", "..", "a/b", "ü ?", "x" * 400):
            assert texts(SimpleChatStore().get_messages(key)) == [f"of {key[:5]}"]


def test_extras_that_are_no_json_live_on_in_the_process(fake_kernel: KernelHandle) -> None:
    thing = object()
    with aios.running("odd"):
        memory = named_buffer()
        memory.put(ChatMessage(role="user", content="x", additional_kwargs={"thing": thing}))
        assert memory.get()[0].additional_kwargs["thing"] is thing
