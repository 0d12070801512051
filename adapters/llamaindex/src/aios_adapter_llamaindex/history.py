"""A chat history that the kernel keeps, one note a message, beside the copy in the framework's own store.

The store's copy stays what it is, so that its semantics are native and code outside a scope finds it filled. Before a
store is read, its copy and the kernel's notes are made equal (`pull`); after it was changed, the difference is written
(`push`). The methods are generators of syscalls, run by `run` or `arun`, because stores are blocking or async.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

from aios_adapters import Scope
from aios_kernel.syscalls import (
    Count,
    MemoryAdd,
    MemoryDelete,
    MemorySearch,
    MemoryUpdate,
    Note,
    Notes,
    Result,
    Syscall,
)

T = TypeVar("T")
Steps: TypeAlias = Generator[tuple[Syscall, type[Result]], Any, T]

_ALL = 1_000_000


class Item(NamedTuple):
    """A message as JSON text, and its status in stores that have one."""

    text: str
    status: str = "active"


@dataclass(frozen=True, slots=True)
class Row:
    """A message that the kernel has."""

    id: str
    item: Item


class History:
    """What one agent's kernel space holds of one chat, as this process last saw it. Guard its use with `lock`."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.rows: list[Row] = []
        self.lock = threading.Lock()
        self._known = False
        self._last_ns = 0

    def pull(self, items: Sequence[Item], *, fetch: bool = True) -> Steps[list[Row] | None]:
        """Write what changed in the copy since last time, then read; gives the rows if the copy must follow them.

        Without `fetch` a history that is known is not read again.
        A copy that was filled before the kernel was first asked stands: its program has just said what it holds.
        """
        if self._known and items != [row.item for row in self.rows]:
            yield from self.push(items)
            return None
        if self._known and not fetch:
            return None
        first, self._known = not self._known, True
        notes = yield MemorySearch(namespace=self.namespace, k=_ALL), Notes
        rows = sorted((_row(note) for note in notes.notes), key=lambda row: row.id)
        if first and items:
            self.rows = rows
            yield from self.push(items)
            return None
        if rows == self.rows:
            return None
        self.rows = rows
        return rows

    def push(self, items: Sequence[Item]) -> Steps[None]:
        """Make the kernel's rows equal to the copy, touching as few as possible."""
        old, new = [row.item.text for row in self.rows], [item.text for item in items]
        head = _common(old, new)
        tail = _common(old[head:][::-1], new[head:][::-1]) if len(new) < len(old) else 0
        if head + tail < len(new):  # something was put in before the tail: ids order the rows, so write them anew
            tail = 0
        yield from self._remove(head, len(old) - tail)
        for item in items[len(self.rows) :]:
            yield from self._append(item)
        yield from self._restate(items)

    def _remove(self, start: int, end: int) -> Steps[None]:
        if end <= start:
            return
        if end - start == len(self.rows):
            yield MemoryDelete(namespace=self.namespace), Count
        else:
            for row in self.rows[start:end]:
                yield MemoryDelete(id=row.id, namespace=self.namespace), Count
        del self.rows[start:end]

    def _append(self, item: Item) -> Steps[None]:
        # Times order the messages of several processes; within one they never stand still.
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        row = Row(f"{self._last_ns:020d}-{secrets.token_hex(4)}", item)
        yield _kept(row, self.namespace), Note
        self.rows.append(row)

    def _restate(self, items: Sequence[Item]) -> Steps[None]:
        for index, (row, item) in enumerate(zip(self.rows, items, strict=True)):
            if row.item != item:
                yield MemoryUpdate(row.id, metadata={"status": item.status}, namespace=self.namespace), Note
                self.rows[index] = Row(row.id, item)


def run(scope: Scope, steps: Steps[T]) -> T:
    """Run the syscalls, blocking."""
    answer: Any = None
    while True:
        try:
            call, kind = steps.send(answer)
        except StopIteration as end:
            return end.value
        answer = scope.call(call, kind)


async def arun(scope: Scope, steps: Steps[T]) -> T:
    """Run the syscalls."""
    answer: Any = None
    while True:
        try:
            call, kind = steps.send(answer)
        except StopIteration as end:
            return end.value
        answer = await scope.acall(call, kind)


def _row(note: Note) -> Row:
    return Row(note.id, Item(note.text, str(note.metadata.get("status", "active"))))


def _kept(row: Row, namespace: str) -> MemoryAdd:
    return MemoryAdd(row.item.text, namespace, {"status": row.item.status}, row.id, embed=False)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
