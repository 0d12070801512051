"""`KernelMemory`: a chat memory for those who choose the kernel openly; it finds old messages by meaning."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory.types import BaseMemory

from aios_adapter_llamaindex.shelf import part
from aios_adapters._scope import required
from aios_kernel.syscalls import Count, MemoryAdd, MemoryDelete, MemorySearch, Note, Notes

_ALL = 1_000_000


class KernelMemory(BaseMemory):
    """A conversation under a name in the agent's space: `agent.run(..., memory=KernelMemory(session="trips"))`.

    `get` brings the last `recent` messages, and before them the `k` older ones nearest to the input. It needs an agent
    that is on (InvalidRequest otherwise).
    """

    aios_kept: bool = True  # its accesses are syscalls already
    session: str = "default"
    recent: int = 20
    k: int = 5

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex files it under."""
        return "KernelMemory"

    @classmethod
    def from_defaults(cls, **kwargs: Any) -> KernelMemory:
        """From keyword arguments."""
        return cls(**kwargs)

    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        """Recent messages, and older ones that are near to the input."""
        notes = self._notes("")
        recent = notes[-self.recent :] if self.recent else []
        older = {note.id for note in notes[: len(notes) - len(recent)]}
        near: set[str] = set()
        if input and older and self.k:
            found = [note.id for note in self._notes(input, self.k + len(recent)) if note.id in older]
            near = set(found[: self.k])
        return [_message(note) for note in notes if note.id in near] + [_message(note) for note in recent]

    def get_all(self) -> list[ChatMessage]:
        """The whole conversation."""
        return [_message(note) for note in self._notes("")]

    def put(self, message: ChatMessage) -> None:
        """Keep a message."""
        text = message.content or ""
        kept = MemoryAdd(
            text=text or message.role.value,
            namespace=self._space(),
            metadata={"message": message.model_dump_json()},
            embed=bool(text.strip()),
        )
        required("KernelMemory.put").call(kept, Note)

    def set(self, messages: list[ChatMessage]) -> None:
        """Replace the conversation."""
        self.reset()
        for message in messages:
            self.put(message)

    def reset(self) -> None:
        """Forget the conversation."""
        required("KernelMemory.reset").call(MemoryDelete(namespace=self._space()), Count)

    def _notes(self, query: str, k: int = _ALL) -> list[Note]:
        search = MemorySearch(query=query, namespace=self._space(), k=k)
        return required("KernelMemory.get").call(search, Notes).notes

    def _space(self) -> str:
        scope = required("KernelMemory")
        while scope.parent is not None:  # agents of a workflow share the memory of the decorated one
            scope = scope.parent
        return f"agent/{scope.agent}/llamaindex/kernel/{part(self.session)}"


def _message(note: Note) -> ChatMessage:
    return ChatMessage.model_validate_json(str(note.metadata["message"]))
