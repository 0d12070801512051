"""`KernelStore`: a LangGraph store in the kernel's memory, for those who choose it openly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from langgraph.store.base import BaseStore, Op, Result
from langgraph.store.memory import InMemoryStore

from aios_adapter_langchain.identity import FRAMEWORK
from aios_adapter_langchain.places import checked_name
from aios_adapter_langchain.plans import arun, run
from aios_adapter_langchain.store_copy import StoreCopy
from aios_adapters import Scope
from aios_adapters._ambient import ambient
from aios_kernel.errors import InternalError


class KernelStore(BaseStore):
    """Items as notes of the agent that is on; outside of every agent, of the agent `agent`.

    Args:
        name: tells several stores of one agent apart.
        fields: paths of the values that a search by meaning looks at; None: search by filter alone.
        agent: whose items they are outside of every agent.
    """

    __aios_direct__ = True

    def __init__(
        self, name: str = "default", *, fields: Sequence[str] | None = ("$",), agent: str = "langgraph"
    ) -> None:
        self._name = checked_name(name)
        self._fields = None if fields is None else [*fields]
        self._agent = agent
        self._rooms: dict[tuple[Any, str], tuple[InMemoryStore, StoreCopy]] = {}

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """See LangGraph."""
        scope = self._scope()
        store, copy = self._room(scope)
        return run(scope, copy.batch(store, [*ops]))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """See LangGraph."""
        scope = self._scope()
        store, copy = self._room(scope)
        return await arun(scope, copy.batch(store, [*ops]))

    def _room(self, scope: Scope) -> tuple[InMemoryStore, StoreCopy]:
        """One agent's items: what this process has seen of them, and how they lie in the kernel."""
        key = (scope.link, scope.agent)
        if key not in self._rooms:
            index: Any = None if self._fields is None else {"dims": 1, "embed": _never, "fields": self._fields}
            self._rooms.setdefault(
                key, (InMemoryStore(index=index), StoreCopy(scope.agent, folder=f"langgraph-stores/{self._name}"))
            )
        return self._rooms[key]

    def _scope(self) -> Scope:
        return ambient(self._agent, FRAMEWORK)


def _never(texts: Sequence[str]) -> list[list[float]]:
    """The kernel embeds; LangGraph's store wants to be given a function all the same."""
    raise InternalError("the working copy of a KernelStore embeds nothing", fix="report this")
