"""A `ListMemory` that the kernel keeps: the object's own list and the kernel's rows, made equal at every access.

The object's list stays what it is (`memory.content` is read and assigned to directly, inside a scope and outside), and
whoever shares the object shares its contents. What changed in it since the last access is written to the kernel; what
the kernel has beyond it (from an earlier process, or from another program of the agent) is added to it.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autogen_core.memory import MemoryContent

from aios_adapter_autogen.contents import content_of, note_of
from aios_adapters._scope import Scope
from aios_kernel.syscalls import Count, MemoryAdd, MemoryDelete, MemorySearch, Note, Notes

_ALL = 1_000_000
_UNNAMED = ("", ".", "..")


@dataclass(slots=True)
class _Row:
    """An item of the list, and the kernel's note that keeps it."""

    id: str
    kept: MemoryAdd
    item: MemoryContent
    claimed: bool
    """Whether this process put it in, rather than an earlier one."""


class KeptList:
    """What one agent sees of one `ListMemory`: the rows of one namespace, in the list's order.

    An item that an earlier process left and that is put in again is the same item: a program that fills its memory at
    each start finds it as it wrote it, not doubled.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._rows: list[_Row] = []
        self._kernel: object | None = None
        """The link to the kernel that the rows are of; None before they were loaded."""
        self._lock = asyncio.Lock()

    async def add(self, scope: Scope, memory: Any, content: MemoryContent) -> None:
        """`ListMemory.add`."""
        async with self._lock:
            await self._write(scope, memory)
            if not self._claim(memory, content):
                row = await self._kept(scope, content)
                self._rows.append(row)
                memory.content.append(content)

    async def read(self, scope: Scope, memory: Any) -> None:
        """Before the object's list is read: write what changed in it, add what it does not have yet."""
        async with self._lock:
            known = self._kernel is scope.link
            await self._write(scope, memory)
            if known:
                await self._fetch(scope, memory)

    async def clear(self, scope: Scope) -> None:
        """Before the object's list is cleared."""
        async with self._lock:
            await scope.acall(MemoryDelete(namespace=self._namespace), Count)
            self._rows, self._kernel = [], scope.link

    async def _write(self, scope: Scope, memory: Any) -> None:
        if self._kernel is not scope.link:
            await self._load(scope, memory)
        elif not _starts_with(memory.content, self._rows):  # replaced, shortened or reordered: keep it as it is now
            await scope.acall(MemoryDelete(namespace=self._namespace), Count)
            self._rows = []
        while len(self._rows) < len(memory.content):
            self._rows.append(await self._kept(scope, memory.content[len(self._rows)]))

    async def _load(self, scope: Scope, memory: Any) -> None:
        notes = await self._notes(scope)
        own = list(memory.content)
        self._rows, self._kernel = [_row(note, claimed=False) for note in notes], scope.link
        memory.content[:] = [row.item for row in self._rows]
        memory.content += [item for item in own if not self._claim(memory, item)]

    def _claim(self, memory: Any, item: MemoryContent) -> bool:
        """Let an item take the place of an equal one that an earlier process left, if there is one."""
        kept = note_of(item, self._namespace)
        for index, row in enumerate(self._rows):
            if not row.claimed and row.kept == kept:
                row.item, row.claimed = item, True
                memory.content[index] = item
                return True
        return False

    async def _kept(self, scope: Scope, item: MemoryContent) -> _Row:
        kept = note_of(item, self._namespace)
        note = await scope.acall(kept, Note)
        return _Row(note.id, kept, item, claimed=True)

    async def _fetch(self, scope: Scope, memory: Any) -> None:
        notes = {note.id: note for note in await self._notes(scope)}
        rows = [row for row in self._rows if row.id in notes]
        known = {row.id for row in rows}
        rows += [_row(note, claimed=True) for note in notes.values() if note.id not in known]
        if [row.id for row in rows] != [row.id for row in self._rows]:
            self._rows = rows
            memory.content[:] = [row.item for row in rows]

    async def _notes(self, scope: Scope) -> Sequence[Note]:
        return (await scope.acall(MemorySearch(namespace=self._namespace, k=_ALL), Notes)).notes


class Shelf:
    """Finds the kernel's list for a `ListMemory` object.

    Its namespace is `agent/<agent>/autogen/<memory's name>`. Lists of one name in one run are numbered in the order of
    their first use; the next run's lists find their contents by that order.
    """

    def __init__(self) -> None:
        self._lists: weakref.WeakKeyDictionary[Any, dict[str, KeptList]] = weakref.WeakKeyDictionary()
        self._users: weakref.WeakKeyDictionary[Scope, dict[str, weakref.ref[Any]]] = weakref.WeakKeyDictionary()

    def find(self, scope: Scope, memory: Any) -> KeptList:
        """The list of this object, as the agent that is on sees it."""
        users = self._users.setdefault(scope, {})
        lists = self._lists.setdefault(memory, {})
        base = f"agent/{scope.agent}/autogen/{_part(memory.name)}"
        namespace = _own(users, memory) or _free(users, lists, base)
        users[namespace] = weakref.ref(memory)
        return lists.setdefault(namespace, KeptList(namespace))


def _own(users: dict[str, weakref.ref[Any]], memory: Any) -> str | None:
    return next((namespace for namespace, user in users.items() if user() is memory), None)


def _free(users: dict[str, weakref.ref[Any]], lists: dict[str, KeptList], base: str) -> str:
    """A namespace that no other list of this run uses: the object's own of an earlier run, if it is still free."""
    before = [namespace for namespace in lists if namespace == base or namespace.startswith(f"{base}-")]
    return next(namespace for namespace in [*before, *_numbered(base, len(users) + 1)] if namespace not in users)


def _numbered(base: str, count: int) -> list[str]:
    return [base, *(f"{base}-{number}" for number in range(2, count + 1))]


def _part(name: str) -> str:
    """A memory's name as one part of a namespace."""
    plain = "".join(c if c.isprintable() and c != "/" else "_" for c in name)[:60]
    return "_" if plain in _UNNAMED else plain


def _row(note: Note, *, claimed: bool) -> _Row:
    item = content_of(note)
    return _Row(note.id, note_of(item, note.namespace), item, claimed)


def _starts_with(items: Sequence[MemoryContent], rows: Sequence[_Row]) -> bool:
    return len(items) >= len(rows) and all(item is row.item for item, row in zip(items, rows, strict=False))
