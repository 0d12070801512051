"""What a kernel has acknowledged, noted down outside it, and whether it still has all of that."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final, Literal, TypeAlias, final

from aios_kernel.client import Client
from aios_kernel.errors import AccessDenied, NotFound
from aios_kernel.syscalls import (
    AgentSpawn,
    FileData,
    Files,
    Interactions,
    MemoryGet,
    MemoryRecall,
    MemorySearch,
    Note,
    Notes,
    StorageGet,
    StorageList,
    StorageVersions,
    ToolPinned,
    ToolPins,
)

Kind: TypeAlias = Literal["note", "file", "grant", "log", "pins"]
Key: TypeAlias = tuple[Kind, str]
Value: TypeAlias = tuple[Any, ...]
"""Of a note: its text and what superseded it, or nothing; of a file: the bytes of all versions; of a grant: nothing, or
one thing; of a log: its texts; of an MCP server's pins: tools and their descriptions."""

NOTHING: Final[Value] = ()


@final
class Ledger:
    """Of one agent. A write that was begun and not acknowledged may have happened or not; one that was, has."""

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.acknowledged = 0
        self._possible: defaultdict[Key, set[Value]] = defaultdict(lambda: {NOTHING})

    def value(self, key: Key) -> Value:
        """What something is; only while nothing about it is open."""
        (value,) = self._possible[key]
        return value

    def begin(self, changes: dict[Key, Value]) -> None:
        """A write is under way: from now on it may have happened."""
        for key, value in changes.items():
            self._possible[key].add(value)

    def end(self, changes: dict[Key, Value]) -> None:
        """It was acknowledged: from now on it has."""
        self.acknowledged += 1
        for key, value in changes.items():
            self._possible[key] = {value}

    def compare(self, client: Client, program: str) -> list[str]:
        """What the kernel has lost or made up, in words; afterwards nothing is open.

        Args:
            client: of the kernel.
            program: an id for this look.
        """
        client.call(AgentSpawn(program=program, agent=self.agent))
        wrong: list[str] = []
        for key, possible in self._possible.items():
            found = self._found(client, program, key)
            if found not in possible:
                wrong.append(f"{self.agent} {key}: {found!r} is none of {sorted(possible)!r}")
            self._possible[key] = {found}
        return wrong + self._unfindable(client, program)

    def _found(self, client: Client, program: str, key: Key) -> Value:
        kind, name = key
        try:
            if kind == "note":
                return _note(client.call(MemoryGet(name), program=program))
            if kind == "file":
                return _file(client, program, name)
            if kind == "pins":
                return _pins(client.call(ToolPins(name), program=program))
            if kind == "log":
                return _log(client.call(MemoryRecall(program=name), program=program))
        except NotFound:
            return NOTHING
        return self._granted(client, program, name)

    def _granted(self, client: Client, program: str, name: str) -> Value:
        grantee, _, below = name.partition(" ")
        other = f"{program}-{grantee}"
        client.call(AgentSpawn(program=other, agent=grantee))
        try:
            client.call(StorageList(owner=f"agent/{self.agent}/{below}"), program=other)
        except AccessDenied:
            return NOTHING
        return (True,)

    def _unfindable(self, client: Client, program: str) -> list[str]:
        """Notes that are there and not found by their own words."""
        notes = [(key[1], value) for key in self._possible if key[0] == "note" and (value := self.value(key))]
        wrong: list[str] = []
        for name, (text, superseded_by) in notes[:5]:
            answer = client.call(MemorySearch(query=text, k=1), program=program)
            assert isinstance(answer, Notes)
            if superseded_by is None and [note.id for note in answer.notes] != [name]:
                wrong.append(f"{self.agent} note {name}: not found by its own words")
        return wrong


def _note(note: object) -> Value:
    assert isinstance(note, Note)
    return note.text, note.superseded_by


def _file(client: Client, program: str, path: str) -> Value:
    versions = client.call(StorageVersions(path), program=program)
    assert isinstance(versions, Files)
    found: list[bytes] = []
    for info in reversed(versions.files):
        file = client.call(StorageGet(path, version=info.version), program=program)
        assert isinstance(file, FileData)
        found.append(file.data)
    return tuple(found)


def _pins(answer: object) -> Value:
    assert isinstance(answer, ToolPinned)
    return tuple(sorted((pin.tool, pin.description) for pin in answer.pins))


def _log(answer: object) -> Value:
    assert isinstance(answer, Interactions)
    return tuple(entry.text for entry in answer.interactions)
