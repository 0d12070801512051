"""Memory that stays where it is, vector stores too: the original runs, and each access is one syscall.

That is everything but the stores that the kernel keeps: chat stores in databases, memory blocks, memories of other
kinds, and all of them under `memory="mediated"`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Generator
from contextvars import ContextVar
from typing import Any

from llama_index.core.memory.memory import BaseMemoryBlock, Memory
from llama_index.core.memory.types import BaseChatStoreMemory, BaseMemory
from llama_index.core.storage.chat_store.base import BaseChatStore
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore
from llama_index.core.storage.chat_store.simple_chat_store import SimpleChatStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from aios_adapters import Scope
from aios_adapters.patching import Patcher, Wrapper
from aios_kernel.syscalls import MemoryAdd, MemorySearch, Note, Notes

_PYDANTIC = "__pydantic_init_subclass__"
_READS = ("get", "aget", "get_all", "aget_all")
_WRITES = ("put", "aput", "put_messages", "aput_messages", "set", "aset", "reset", "areset")
_STORE_READS = ("get_messages", "aget_messages")
_STORE_WRITES = (
    "set_messages", "aset_messages", "add_message", "async_add_message", "delete_messages", "adelete_messages",
    "delete_message", "adelete_message", "delete_last_message", "adelete_last_message",
)  # fmt: skip
_DB_READS = ("get_messages", "count_messages")
_DB_WRITES = (
    "add_message", "add_messages", "set_messages", "delete_message", "delete_messages", "delete_oldest_messages",
    "archive_oldest_messages",
)  # fmt: skip

_VECTOR_READS = ("query", "aquery", "get_nodes", "aget_nodes")
_VECTOR_WRITES = (
    "add", "async_add", "delete", "adelete", "delete_nodes", "adelete_nodes", "clear", "aclear",
)  # fmt: skip

_passing: ContextVar[Any] = ContextVar("aios_llamaindex_memory", default=None)
"""The object whose access has passed the kernel: what it calls on itself on the way belongs to that access."""


def install(patcher: Patcher) -> None:
    """Hook the other chat stores, memories and memory blocks, present and future."""
    patcher.leaves(BaseChatStore, _wrappers(BaseChatStore, _STORE_READS, _STORE_WRITES), late=_PYDANTIC)
    patcher.leaves(AsyncDBChatStore, _wrappers(AsyncDBChatStore, _DB_READS, _DB_WRITES), late=_PYDANTIC)
    patcher.leaves(BaseMemoryBlock, _wrappers(BaseMemoryBlock, ("_aget",), ("_aput",)), late=_PYDANTIC)
    patcher.leaves(BaseMemory, _wrappers(BaseMemory, _READS, _WRITES), late=_PYDANTIC)
    vectors = _wrappers(BasePydanticVectorStore, _VECTOR_READS, _VECTOR_WRITES)
    patcher.leaves(BasePydanticVectorStore, vectors, late=_PYDANTIC)


def is_kept(scope: Scope) -> bool:
    """Whether the kernel keeps the memory objects that live in this process."""
    return scope.options.memory in (None, "kernel")


def mediated(scope: Scope, original: Any, target: Any, /, writes: bool, *args: Any, **kwargs: Any) -> Any:
    """Run the original after its syscall."""
    if _is_free(scope, target):
        return original(target, *args, **kwargs)
    if writes:
        scope.call(_write(scope, target), Note)
    else:
        scope.call(_read(scope, target), Notes)
    with _during(target):
        return original(target, *args, **kwargs)


async def amediated(scope: Scope, original: Any, target: Any, /, writes: bool, *args: Any, **kwargs: Any) -> Any:
    """Await the original after its syscall."""
    if not _is_free(scope, target):
        if writes:
            await scope.acall(_write(scope, target), Note)
        else:
            await scope.acall(_read(scope, target), Notes)
    with _during(target):
        return await original(target, *args, **kwargs)


def _wrappers(base: type, reads: tuple[str, ...], writes: tuple[str, ...]) -> dict[str, Wrapper]:
    return {name: _wrapper(base, name, name in writes) for name in (*reads, *writes)}


def _wrapper(base: type, name: str, writes: bool) -> Wrapper:
    def plain(scope: Scope, original: Any, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        return mediated(scope, original, target, writes, *args, **kwargs)

    async def coroutine(scope: Scope, original: Any, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        return await amediated(scope, original, target, writes, *args, **kwargs)

    return coroutine if inspect.iscoroutinefunction(getattr(base, name)) else plain


def _is_free(scope: Scope, target: Any) -> bool:
    """Whether an access needs no syscall of its own: memory is off, it is part of another, or its store will pass."""
    return (
        scope.options.memory == "off"
        or getattr(target, "aios_kept", False)
        or _passing.get() is target
        or isinstance(target, BaseChatStoreMemory | Memory)
        or (is_kept(scope) and isinstance(target, SimpleChatStore))
    )


def _space(scope: Scope, target: Any) -> str:
    return f"agent/{scope.agent}/mediated/{type(target).__name__}"


def _read(scope: Scope, target: Any) -> MemorySearch:
    return MemorySearch(namespace=_space(scope, target), k=1)


def _write(scope: Scope, target: Any) -> MemoryAdd:
    """Always the same note: what counts is that the access is allowed and recorded."""
    return MemoryAdd(type(target).__name__, _space(scope, target), id="last-write", embed=False)


@contextlib.contextmanager
def _during(target: Any) -> Generator[None]:
    token = _passing.set(target)
    try:
        yield
    finally:
        _passing.reset(token)
