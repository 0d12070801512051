"""Long-term memory of agents: notes that the kernel keeps, finds by meaning, and shares within a group.

`aios.memory.add(...)` and `aios.memory.search(...)` work on the agent that is on; `aadd` and `asearch` are their async
forms. Shared notes are those of the agent's group, which its agents of every framework read and write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from aios_adapters._scope import required
from aios_kernel.syscalls import MemoryAdd, MemorySearch, Note, Notes

Filter: TypeAlias = Mapping[str, str | int | float | bool]


def add(text: str, *, shared: bool = True, id: str | None = None, **metadata: Any) -> Note:
    """Remember a text; gives the note.

    Args:
        text: what to remember; searches compare its meaning.
        shared: keep it for the whole group, else for this agent alone.
        id: replaces the note of this id, if there is one; None makes a new note.
        **metadata: JSON values to filter by later.
    """
    return required("memory.add").call(_add(text, shared, id, metadata), Note)


async def aadd(text: str, *, shared: bool = True, id: str | None = None, **metadata: Any) -> Note:
    """Like `add`."""
    return await required("memory.aadd").acall(_add(text, shared, id, metadata), Note)


def search(query: str, k: int = 5, *, shared: bool = True, filter: Filter | None = None) -> list[Note]:
    """The `k` notes nearest to a text, best first.

    Args:
        query: what to look for; empty lists the notes by age.
        k: how many at most.
        shared: look among the group's notes, else among this agent's own.
        filter: metadata that a note must have.
    """
    return required("memory.search").call(_search(query, k, shared, filter), Notes).notes


async def asearch(query: str, k: int = 5, *, shared: bool = True, filter: Filter | None = None) -> list[Note]:
    """Like `search`."""
    return (await required("memory.asearch").acall(_search(query, k, shared, filter), Notes)).notes


def _add(text: str, shared: bool, id: str | None, metadata: dict[str, Any]) -> MemoryAdd:
    return MemoryAdd(text=text, namespace=_space(shared), id=id, metadata=metadata)


def _search(query: str, k: int, shared: bool, filter: Filter | None) -> MemorySearch:
    return MemorySearch(query=query, namespace=_space(shared), k=k, filter=dict(filter or {}))


def _space(shared: bool) -> str | None:
    return "group" if shared else None  # the kernel knows which group the agent is in
