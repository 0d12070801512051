"""Memories: a `ListMemory` is kept by the kernel; the others stay where they are, and each access passes the kernel."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Generator
from typing import Any

from autogen_core.memory import ListMemory, Memory, MemoryContent

from aios_adapter_autogen.kept_list import Shelf
from aios_adapters._scope import Scope
from aios_adapters.patching import Patcher
from aios_kernel.syscalls import MemoryAdd, MemorySearch, Note, Notes

_busy: contextvars.ContextVar[Any] = contextvars.ContextVar("aios_autogen_memory", default=None)
"""The memory whose access passed the kernel; what it calls on itself on the way belongs to that access."""


def install(patcher: Patcher) -> None:
    """Hook every memory, present and future."""
    calls = MemoryCalls()
    patcher.leaves(
        Memory,
        {
            "add": calls.add,
            "clear": calls.clear,
            "query": calls.read,
            "update_context": calls.read,
        },
    )


class MemoryCalls:
    """The wrappers of `add`, `clear`, `query` and `update_context`."""

    def __init__(self) -> None:
        self._shelf = Shelf()

    async def add(self, scope: Scope, original: Callable[..., Any], memory: Any, /, *args: Any, **kwargs: Any) -> None:
        """`Memory.add`."""
        if not _is_kept(scope, memory):
            await _mediated(scope, original, memory, args, kwargs, write="add")
        elif _is_list_memorys(original):
            content: MemoryContent = args[0] if args else kwargs["content"]
            await self._shelf.find(scope, memory).add(scope, memory, content)
        else:  # a subclass's own: what it adds is written when it calls `super()`, or at the next access
            await original(memory, *args, **kwargs)

    async def clear(
        self, scope: Scope, original: Callable[..., Any], memory: Any, /, *args: Any, **kwargs: Any
    ) -> None:
        """`Memory.clear`."""
        if not _is_kept(scope, memory):
            await _mediated(scope, original, memory, args, kwargs, write="clear")
            return
        if _is_list_memorys(original):
            await self._shelf.find(scope, memory).clear(scope)
        await original(memory, *args, **kwargs)

    async def read(self, scope: Scope, original: Callable[..., Any], memory: Any, /, *args: Any, **kwargs: Any) -> Any:
        """`Memory.query` and `Memory.update_context`."""
        if not _is_kept(scope, memory):
            return await _mediated(scope, original, memory, args, kwargs, write=None)
        if _busy.get() is not memory:
            await self._shelf.find(scope, memory).read(scope, memory)
        with _during(memory):
            return await original(memory, *args, **kwargs)


async def _mediated(
    scope: Scope, original: Callable[..., Any], memory: Any, /, args: Any, kwargs: Any, *, write: str | None
) -> Any:
    """The original under the kernel's eyes: one search or one note (always the same) in the agent's own space."""
    if getattr(memory, "aios_kept", False) or scope.options.memory == "off" or _busy.get() is memory:
        return await original(memory, *args, **kwargs)
    name = type(memory).__name__
    space = f"agent/{scope.agent}/mediated/{name}"
    if write is None:
        await scope.acall(MemorySearch(namespace=space, k=1), Notes)
    else:
        await scope.acall(MemoryAdd(f"{name}.{write}", space, id="last-write", embed=False), Note)
    with _during(memory):
        return await original(memory, *args, **kwargs)


@contextlib.contextmanager
def _during(memory: Any) -> Generator[None]:
    token = _busy.set(memory)
    try:
        yield
    finally:
        _busy.reset(token)


def _is_kept(scope: Scope, memory: Any) -> bool:
    return isinstance(memory, ListMemory) and scope.options.memory in (None, "kernel")


def _is_list_memorys(original: Callable[..., Any]) -> bool:
    return original.__module__ == ListMemory.__module__
