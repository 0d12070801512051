"""One `Memory` of MetaGPT and its notes in the kernel."""

from __future__ import annotations

import logging
import uuid
from typing import Any

import msgspec

from aios_adapters import Scope
from aios_kernel.syscalls import Count, MemoryAdd, MemoryDelete, MemorySearch, Note, Notes

_log = logging.getLogger(__name__)
_ALL = 1_000_000


class Keeper:
    """Keeps a memory's messages as notes of one namespace, in the order of its list.

    Attributes:
        namespace: where its notes are.
        run: the outermost scope of the run that the memory was last used in.
        mediated: the kernel allows and counts what is done with the memory, and keeps nothing.
    """

    def __init__(self, namespace: str, run: Scope, *, mediated: bool) -> None:
        self.namespace = namespace
        self.run = run
        self.mediated = mediated
        self._notes: list[tuple[str, Any]] = []
        """Id of the note and the very message, in the order of the list."""

    def everything(self) -> MemorySearch:
        """The syscall that reads the whole memory."""
        return MemorySearch(namespace=self.namespace, k=_ALL)

    def glance(self, scope: Scope) -> None:
        """Pass the kernel without reading anything much."""
        scope.call(MemorySearch(namespace=self.namespace, k=1), Notes)

    def refresh(self, scope: Scope, memory: Any, notes: Notes) -> None:
        """Make the list what the kernel has, plus what the list has that the kernel never saw."""
        known = dict(self._notes)
        kept = [(note.id, known[note.id] if note.id in known else loaded(note)) for note in notes.notes]
        before = [message for message in memory.storage if not any(message is m for m in known.values())]
        messages = [message for _, message in kept]
        self._notes = kept
        memory.storage[:] = [*messages, *(message for message in before if message not in messages)]
        memory.index.clear()
        for message in memory.storage:
            if message.cause_by:
                memory.index[message.cause_by].append(message)
        self.write(scope, memory)

    def write(self, scope: Scope, memory: Any) -> None:
        """Bring the kernel up to date with the list."""
        listed, kept = {id(message) for message in memory.storage}, {id(message) for _, message in self._notes}
        for note, message in self._notes:
            if id(message) not in listed:
                scope.call(MemoryDelete(id=note, namespace=self.namespace), Count)
        self._notes = [(note, message) for note, message in self._notes if id(message) in listed]
        for message in memory.storage:
            if id(message) not in kept:
                self._notes.append((self._add(scope, message), message))

    def _add(self, scope: Scope, message: Any) -> str:
        call = MemoryAdd(
            text=message.dump(),
            namespace=self.namespace,
            metadata={"class": type(message).__name__, "role": message.role},
            id=uuid.uuid4().hex,
            embed=False,
        )
        return scope.call(call, Note).id


def loaded(note: Note) -> Any:
    """The message in a note, by MetaGPT's own JSON."""
    from metagpt.schema import AIMessage, Message, SystemMessage, UserMessage

    message = _parsed(note)
    kinds = {kind.__name__: kind for kind in (UserMessage, SystemMessage, AIMessage)}
    kind = kinds.get(str(note.metadata.get("class")))
    if kind is None:
        return message
    special = kind(message.content)
    for name in Message.model_fields:
        setattr(special, name, getattr(message, name))
    return special


def _parsed(note: Note) -> Any:
    from metagpt.schema import Message

    try:
        return Message.load(note.text)
    except Exception as error:  # noqa: BLE001 - it imports the class of structured content, which can fail in any way
        _log.warning("the structured content of a remembered message cannot be rebuilt and is left out: %s", error)
        plain = {key: value for key, value in msgspec.json.decode(note.text).items() if key != "instruct_content"}
        return Message.load(msgspec.json.encode(plain).decode())
