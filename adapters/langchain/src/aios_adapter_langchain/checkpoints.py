"""LangGraph's checkpointers. An `InMemorySaver` is kept by the kernel; others stay where they are, each access seen."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver

from aios_adapter_langchain.places import Spaces, place_of
from aios_adapter_langchain.plans import Plan, arun, run
from aios_adapter_langchain.saver_copy import SaverCopy
from aios_adapters import Scope
from aios_adapters._scope import suspended
from aios_adapters.patching import Patcher
from aios_kernel.syscalls import Files, StorageList

_NATIVE = "langgraph.checkpoint.memory"
Original = Callable[..., Any]


def install(patcher: Patcher) -> None:
    """Hook the accessors of every checkpointer."""
    hooks = CheckpointHooks()
    wrappers = {
        "get_tuple": hooks.get_tuple,
        "aget_tuple": hooks.aget_tuple,
        "get_delta_channel_history": hooks.get_tuple,
        "aget_delta_channel_history": hooks.aget_tuple,
        "list": hooks.list,
        "alist": hooks.alist,
        "put": hooks.put,
        "aput": hooks.aput,
        "put_writes": hooks.put_writes,
        "aput_writes": hooks.aput_writes,
        "delete_thread": hooks.delete_thread,
        "adelete_thread": hooks.adelete_thread,
    }
    patcher.leaves(BaseCheckpointSaver, wrappers)


class _Book(Protocol):
    """What the kernel is asked around an access."""

    def before_read(self, saver: Any, config: Any) -> Plan[None]: ...
    def after_put(self, saver: Any, saved: Any, checkpoint: Any) -> Plan[None]: ...
    def after_writes(self, saver: Any, config: Any, task: str, indexes: Sequence[int]) -> Plan[None]: ...
    def after_delete(self, saver: Any, thread: Any) -> Plan[None]: ...


class _Elsewhere:
    """A saver whose contents stay where they are.

    `counted`: each access is one cheap syscall, so allowed, counted and audited. Otherwise it is left alone.
    """

    def __init__(self, counted: bool) -> None:
        self.counted = counted

    def before_read(self, saver: Any, config: Any) -> Plan[None]:
        return self._account(saver)

    def after_put(self, saver: Any, saved: Any, checkpoint: Any) -> Plan[None]:
        return self._account(saver)

    def after_writes(self, saver: Any, config: Any, task: str, indexes: Sequence[int]) -> Plan[None]:
        return self._account(saver)

    def after_delete(self, saver: Any, thread: Any) -> Plan[None]:
        return self._account(saver)

    def _account(self, saver: Any) -> Plan[None]:
        if self.counted:
            yield StorageList(prefix=f"langgraph/mediated/{type(saver).__name__}/"), Files


class CheckpointHooks:
    """The wrappers; they remember which saver is which space of its agent.

    Checkpoints belong to the decorated agent, whatever agents of LangChain's run inside: LangGraph's loop reads and
    writes them outside of every node, where no other name is known.
    """

    def __init__(self) -> None:
        self._copies: Spaces[SaverCopy] = Spaces(SaverCopy)

    def get_tuple(self, scope: Scope, original: Original, saver: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Read; also the history of channels that store changes."""
        book = self._book(scope, original, saver)
        run(scope, book.before_read(saver, _config(args, kwargs)))
        with _quiet(book):
            return original(saver, *args, **kwargs)

    async def aget_tuple(self, scope: Scope, original: Original, saver: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Like `get_tuple`."""
        book = self._book(scope, original, saver)
        await arun(scope, book.before_read(saver, _config(args, kwargs)))
        with _quiet(book):
            return await original(saver, *args, **kwargs)

    def list(self, scope: Scope, original: Original, saver: Any, /, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Read several."""
        book = self._book(scope, original, saver)
        run(scope, book.before_read(saver, _config(args, kwargs)))
        with _quiet(book):
            source = iter(original(saver, *args, **kwargs))
        while True:
            with _quiet(book):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    async def alist(
        self, scope: Scope, original: Original, saver: Any, /, *args: Any, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Like `list`."""
        book = self._book(scope, original, saver)
        await arun(scope, book.before_read(saver, _config(args, kwargs)))
        source = original(saver, *args, **kwargs)
        while True:
            with _quiet(book):
                try:
                    item = await anext(source)
                except StopAsyncIteration:
                    return
            yield item

    def put(
        self,
        scope: Scope,
        original: Original,
        saver: Any,
        /,
        config: Any,
        checkpoint: Any,
        metadata: Any,
        new_versions: Any,
    ) -> Any:
        """Write a checkpoint."""
        book = self._book(scope, original, saver)
        with _quiet(book):
            saved = original(saver, config, checkpoint, metadata, new_versions)
        run(scope, book.after_put(saver, saved, checkpoint))
        return saved

    async def aput(
        self,
        scope: Scope,
        original: Original,
        saver: Any,
        /,
        config: Any,
        checkpoint: Any,
        metadata: Any,
        new_versions: Any,
    ) -> Any:
        """Like `put`."""
        book = self._book(scope, original, saver)
        with _quiet(book):
            saved = await original(saver, config, checkpoint, metadata, new_versions)
        await arun(scope, book.after_put(saver, saved, checkpoint))
        return saved

    def put_writes(
        self,
        scope: Scope,
        original: Original,
        saver: Any,
        /,
        config: Any,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        *path: Any,
        **named: Any,
    ) -> None:
        """Write what a task did before its step is over. Savers from before LangGraph's task paths take none."""
        book = self._book(scope, original, saver)
        with _quiet(book):
            original(saver, config, writes, task_id, *path, **named)
        run(scope, book.after_writes(saver, config, task_id, _indexes(writes)))

    async def aput_writes(
        self,
        scope: Scope,
        original: Original,
        saver: Any,
        /,
        config: Any,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        *path: Any,
        **named: Any,
    ) -> None:
        """Like `put_writes`."""
        book = self._book(scope, original, saver)
        with _quiet(book):
            await original(saver, config, writes, task_id, *path, **named)
        await arun(scope, book.after_writes(saver, config, task_id, _indexes(writes)))

    def delete_thread(self, scope: Scope, original: Original, saver: Any, /, thread_id: str) -> None:
        """Forget a thread."""
        book = self._book(scope, original, saver)
        with _quiet(book):
            original(saver, thread_id)
        run(scope, book.after_delete(saver, thread_id))

    async def adelete_thread(self, scope: Scope, original: Original, saver: Any, /, thread_id: str) -> None:
        """Like `delete_thread`."""
        book = self._book(scope, original, saver)
        with _quiet(book):
            await original(saver, thread_id)
        await arun(scope, book.after_delete(saver, thread_id))

    def _book(self, scope: Scope, original: Original, saver: Any) -> _Book:
        native = sys.modules.get(_NATIVE)
        in_process = native is not None and isinstance(saver, native.InMemorySaver)
        place = place_of(scope, original, in_process, _NATIVE)
        if place == "kernel":
            return self._copies.copy_of(scope, saver, saver.storage)
        return _Elsewhere(counted=place == "mediated")


def _quiet(book: _Book) -> AbstractContextManager[None]:
    """Run the original so that what it calls of the saver's own methods is not counted again."""
    return nullcontext() if isinstance(book, _Elsewhere) and not book.counted else suspended()


def _config(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("config")


def _indexes(writes: Sequence[tuple[str, Any]]) -> list[int]:
    """The places of writes among their task's, as LangGraph counts them: errors and interrupts have fixed ones."""
    return [WRITES_IDX_MAP.get(channel, index) for index, (channel, _) in enumerate(writes)]
