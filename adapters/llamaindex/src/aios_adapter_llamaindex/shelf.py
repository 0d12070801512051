"""Which history belongs to which store, chat and agent."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from aios_adapter_llamaindex.history import History
from aios_adapters import Scope

FRAMEWORK = "llamaindex"
_MAX_PART = 180


class Shelf:
    """The histories of the stores that live in this process; a store that dies takes its own with it."""

    def __init__(self) -> None:
        self._histories: dict[int, dict[tuple[str, str], History]] = {}
        self._litter: list[str] = []
        self._lock = threading.RLock()  # re-entrant: a store may be collected while another is looked up

    def find(self, scope: Scope, store: Any, chat: str, path: str) -> History:
        """The history of one chat in one store, as the agent sees it; `path` places it below the agent's space."""
        key = (owner_of(scope), chat)
        with self._lock:
            histories = self._histories.get(id(store))
            if histories is None:
                histories = self._histories[id(store)] = {}
                weakref.finalize(store, self._forget, id(store)).atexit = False
            if key not in histories:
                histories[key] = History(f"agent/{key[0]}/{FRAMEWORK}/{path}")
            return histories[key]

    def litter(self, scope: Scope) -> Iterator[str]:
        """Namespaces of this agent that nothing can reach any more, each given once."""
        mine = f"agent/{owner_of(scope)}/"
        with self._lock:
            found = [namespace for namespace in self._litter if namespace.startswith(mine)]
            self._litter = [namespace for namespace in self._litter if namespace not in found]
        yield from found

    def _forget(self, store: int) -> None:
        with self._lock:
            histories = self._histories.pop(store, {})
            self._litter += [h.namespace for h in histories.values() if "/unnamed/" in h.namespace and h.rows]


def owner_of(scope: Scope) -> str:
    """The decorated agent: the framework's own agents inside it share its chats, as they share the memory object."""
    while scope.parent is not None and scope.options.framework == FRAMEWORK:
        scope = scope.parent
    return scope.agent


def part(text: str) -> str:
    """A chat's key as one part of a namespace."""
    quoted = quote(text, safe="")
    if quoted in ("", ".", "..") or len(quoted) > _MAX_PART:
        return "sha256-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return quoted
