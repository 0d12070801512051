"""Memory for those who choose the kernel openly: LangGraph's own in-memory classes, kept under a name.

Inside an agent the kernel keeps them whatever the decorator's `memory=` says, and the next process finds them by their
name instead of by the order of first use. Outside of every agent they are what they derive from.
"""

from __future__ import annotations

from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore

from aios_adapter_langchain.places import checked_name


class KernelCheckpointSaver(InMemorySaver):
    """A checkpointer that lives in the kernel: `create_agent(..., checkpointer=KernelCheckpointSaver("trips"))`."""

    def __init__(self, name: str = "saver", **options: Any) -> None:
        """`name`: letters, digits, `_` and `-`, one for each of an agent's savers; `options` are `InMemorySaver`'s."""
        super().__init__(**options)
        self.aios_name = checked_name(name)


class KernelStore(InMemoryStore):
    """A store that lives in the kernel: `create_agent(..., store=KernelStore("facts"))`."""

    def __init__(self, name: str = "store", **options: Any) -> None:
        """`name`: letters, digits, `_` and `-`, one for each of an agent's stores; `options` are `InMemoryStore`'s."""
        super().__init__(**options)
        self.aios_name = checked_name(name)
