"""LangGraph's stores. An `InMemoryStore` is kept by the kernel; others stay where they are, each batch seen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from langgraph.store.base import BaseStore

from aios_adapter_langchain.identity import caller
from aios_adapter_langchain.places import Spaces, place_of
from aios_adapter_langchain.plans import Plan, arun, run
from aios_adapters import Scope
from aios_adapters._scope import suspended
from aios_adapters.patching import Patcher
from aios_kernel.syscalls import MemorySearch, Notes

if TYPE_CHECKING:
    from aios_adapter_langchain.store_copy import StoreCopy

_NATIVE = "langgraph.store.memory"
Original = Callable[..., Any]


def install(patcher: Patcher) -> None:
    """Hook the two methods in which every access of a store ends."""
    hooks = StoreHooks()
    patcher.leaves(BaseStore, {"batch": hooks.batch, "abatch": hooks.abatch})


class StoreHooks:
    """The wrappers; they remember which store is which space of its agent.

    Items belong to the decorated agent, whatever agents of LangChain's run inside, so that these can share a store.
    """

    def __init__(self) -> None:
        self._copies: Spaces[StoreCopy] = Spaces(_copy)

    def batch(self, scope: Scope, original: Original, store: Any, /, ops: Iterable[Any]) -> list[Any]:
        """Read and write."""
        copy, counted = self._place(scope, original, store)
        if copy is not None:
            return run(caller(scope), copy.batch(store, list(ops)))
        if not counted:
            return original(store, ops)
        run(caller(scope), _account(store))
        with suspended():
            return original(store, ops)

    async def abatch(self, scope: Scope, original: Original, store: Any, /, ops: Iterable[Any]) -> list[Any]:
        """Like `batch`."""
        copy, counted = self._place(scope, original, store)
        if copy is not None:
            return await arun(caller(scope), copy.batch(store, list(ops)))
        if not counted:
            return await original(store, ops)
        await arun(caller(scope), _account(store))
        with suspended():
            return await original(store, ops)

    def _place(self, scope: Scope, original: Original, store: Any) -> tuple[StoreCopy | None, bool]:
        """The kernel's copy of a store, if it has one; whether accesses of another store are counted."""
        native = sys.modules.get(_NATIVE)
        in_process = native is not None and isinstance(store, native.InMemoryStore)
        place = place_of(scope, original, in_process, _NATIVE)
        copy = self._copies.copy_of(scope, store, store._data) if place == "kernel" else None
        return copy, place == "mediated"


def _copy(agent: str, number: int) -> StoreCopy:
    # Imported here: it needs LangGraph's store module, which may not be imported before the first store of its kind.
    from aios_adapter_langchain.store_copy import StoreCopy

    return StoreCopy(agent, number)


def _account(store: Any) -> Plan[None]:
    yield MemorySearch(k=1, filter={"mediated": type(store).__name__}), Notes
