"""`KernelMemory`: an AutoGen memory for those who choose the kernel openly; it finds by meaning, not everything."""

from __future__ import annotations

from typing import Any

from autogen_core import CancellationToken
from autogen_core.memory import Memory, MemoryContent, MemoryMimeType, MemoryQueryResult, UpdateContextResult
from autogen_core.model_context import ChatCompletionContext
from autogen_core.models import SystemMessage

from aios_adapter_autogen.contents import content_of, note_of
from aios_adapters._scope import required
from aios_kernel.errors import InvalidRequest
from aios_kernel.syscalls import Count, MemoryDelete, MemorySearch, Note, Notes


class KernelMemory(Memory):
    """Notes of the kernel as an agent's memory: `AssistantAgent(..., memory=[KernelMemory("facts")])`.

    It needs an agent that is on (InvalidRequest otherwise); `shared` notes are the group's, the others the agent's own.
    """

    aios_kept = True  # its accesses are syscalls already

    def __init__(self, name: str = "kernel", *, k: int = 5, shared: bool = False) -> None:
        """`k`: how many notes a question brings at most."""
        self.name = name
        self._k = k
        self._shared = shared

    async def add(self, content: MemoryContent, cancellation_token: CancellationToken | None = None) -> None:
        """Keep a content."""
        await required("KernelMemory.add").acall(note_of(content, self._space()), Note)

    async def query(
        self,
        query: str | MemoryContent,
        cancellation_token: CancellationToken | None = None,
        **kwargs: Any,
    ) -> MemoryQueryResult:
        """The `k` contents nearest to a text; an empty one lists them by age."""
        text = query if isinstance(query, str) else str(query.content)
        search = MemorySearch(query=text, namespace=self._space(), k=int(kwargs.get("k", self._k)))
        notes = await required("KernelMemory.query").acall(search, Notes)
        return MemoryQueryResult(results=[content_of(note) for note in notes.notes])

    async def update_context(self, model_context: ChatCompletionContext) -> UpdateContextResult:
        """Tell the model what is nearest to the last message."""
        messages = await model_context.get_messages()
        asked = str(messages[-1].content) if messages else ""
        found = await self.query(asked)
        texts = [f"{n}. {content.content}" for n, content in enumerate(found.results, 1) if _is_text(content)]
        if texts:
            told = "\nRelevant memory content (in order of relevance):\n" + "\n".join(texts) + "\n"
            await model_context.add_message(SystemMessage(content=told))
        return UpdateContextResult(memories=found)

    async def clear(self) -> None:
        """Forget everything under this name. Raises InvalidRequest for shared notes, which are others' too."""
        if self._shared:
            raise InvalidRequest("a group's notes are not one memory's to clear", fix="aios.memory, note by note")
        await required("KernelMemory.clear").acall(MemoryDelete(namespace=self._space()), Count)

    async def close(self) -> None:
        """Nothing is open."""

    def _space(self) -> str:
        scope = required("KernelMemory")
        if self._shared:
            return "group"
        while scope.parent is not None:  # the agents of a team share what the decorated one knows
            scope = scope.parent
        return f"agent/{scope.agent}/autogen-notes/{self.name}"


def _is_text(content: MemoryContent) -> bool:
    return content.mime_type in (MemoryMimeType.TEXT, MemoryMimeType.TEXT.value)
