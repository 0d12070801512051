"""Memories of roles, kept by the kernel.

A role's `Memory` stays what it is, a list of messages in this process with its own rules; the kernel holds the truth.
When a role begins to run, its memory is read from the kernel; every message it adds or deletes is written at once.
So a role of the same name, in the next process, remembers. Reads in between are answered from the list, after the
kernel has allowed and counted them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from aios_adapter_metagpt.keeper import Keeper
from aios_adapters import Scope
from aios_kernel.syscalls import Notes

_PARTS = {"memory": "memory", "working_memory": "working"}
_READS = ("get", "get_by_role", "get_by_content", "try_remember", "get_by_action", "get_by_actions", "count")
_WRITES = ("add", "delete", "delete_newest", "clear")


class Keepers:
    """Which memory is kept where. A memory that is no role's is not kept: nothing names it in the next process."""

    def __init__(self) -> None:
        self._keepers: dict[int, Keeper] = {}
        self._claims: weakref.WeakKeyDictionary[Scope, dict[str, list[weakref.ref[Any]]]] = weakref.WeakKeyDictionary()

    def wrappers(self) -> dict[str, Callable[..., Any]]:
        """The wrappers of `Memory`'s own methods; `find_news` and `add_batch` go through these."""
        return {**dict.fromkeys(_READS, self._read), **dict.fromkeys(_WRITES, self._write)}

    async def aopen(self, scope: Scope, role: Any) -> None:
        """Bring the role's memories up to date with the kernel."""
        for memory, keeper in self._kept(scope, role):
            keeper.refresh(scope, memory, await scope.acall(keeper.everything(), Notes))

    def open(self, scope: Scope, role: Any) -> None:
        """Like `aopen`, blocking."""
        for memory, keeper in self._kept(scope, role):
            keeper.refresh(scope, memory, scope.call(keeper.everything(), Notes))

    def _kept(self, scope: Scope, role: Any) -> list[tuple[Any, Keeper]]:
        if scope.options.memory == "off":
            return []
        memories = [(getattr(role.rc, part), label) for part, label in _PARTS.items()]
        keepers = [(memory, self._keeper(scope, memory, label)) for memory, label in memories]
        return [(memory, keeper) for memory, keeper in keepers if not keeper.mediated]

    def _read(self, scope: Scope, original: Any, memory: Any, /, *args: Any, **kwargs: Any) -> Any:
        keeper = self._active(scope, memory)
        if keeper is not None:
            keeper.glance(scope)
        return original(memory, *args, **kwargs)

    def _write(self, scope: Scope, original: Any, memory: Any, /, *args: Any, **kwargs: Any) -> Any:
        keeper = self._active(scope, memory)
        if keeper is not None and keeper.mediated:
            keeper.glance(scope)
        result = original(memory, *args, **kwargs)
        if keeper is not None and not keeper.mediated:
            keeper.write(scope, memory)
        return result

    def _active(self, scope: Scope, memory: Any) -> Keeper | None:
        name = getattr(memory, "aios_name", None)
        if name is not None:
            return self._named(scope, memory, str(name))
        return None if scope.options.memory == "off" else self._keepers.get(id(memory))

    def _named(self, scope: Scope, memory: Any, name: str) -> Keeper:
        """The keeper of a `KernelMemory`, brought up to date at its first use in a run."""
        run = _outermost(scope)
        keeper = self._keepers.get(id(memory))
        if keeper is None or keeper.run is not run:
            if keeper is None:
                weakref.finalize(memory, self._keepers.pop, id(memory), None)
            keeper = self._keepers[id(memory)] = Keeper(f"agent/{run.agent}/metagpt/named/{name}", run, mediated=False)
            keeper.refresh(scope, memory, scope.call(keeper.everything(), Notes))
        return keeper

    def _keeper(self, scope: Scope, memory: Any, label: str) -> Keeper:
        """The keeper of a memory in this run; a memory that was used in another run brings its messages along."""
        run = _outermost(scope)
        keeper = self._keepers.get(id(memory))
        if keeper is not None and keeper.run is run:
            return keeper
        namespace = self._claim(run, f"agent/{scope.agent}/metagpt/{label}", memory)
        mediated = scope.options.memory == "mediated"
        if keeper is None:
            weakref.finalize(memory, self._keepers.pop, id(memory), None)
        if keeper is None or (keeper.namespace, keeper.mediated) != (namespace, mediated):
            keeper = self._keepers[id(memory)] = Keeper(namespace, run, mediated=mediated)
        keeper.run = run
        return keeper

    def _claim(self, run: Scope, namespace: str, memory: Any) -> str:
        """The namespace; roles of the same name in one run are told apart by the order of their first use."""
        claims = self._claims.setdefault(run, {}).setdefault(namespace, [])
        owners = [claim() for claim in claims]
        place = next((place for place, owner in enumerate(owners) if owner is memory), len(claims))
        if place == len(claims):
            claims.append(weakref.ref(memory))
        return namespace if place == 0 else f"{namespace}-{place + 1}"


def _outermost(scope: Scope) -> Scope:
    while scope.parent is not None:
        scope = scope.parent
    return scope
