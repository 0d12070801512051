"""Compiled grammars, the ones used last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

_MOST = 256
_MOST_BYTES = 256 << 20


class GrammarCache:
    """Least recently used out first, bounded in number and in memory. Thread-safe.

    Args:
        most: grammars.
        most_bytes: of memory, as xgrammar counts it.
    """

    def __init__(self, most: int = _MOST, most_bytes: int = _MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._entries: OrderedDict[str, Any] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, tag: str) -> Any | None:
        """The compiled grammar of a structural tag, if it is kept."""
        with self._lock:
            if tag in self._entries:
                self._entries.move_to_end(tag)
            return self._entries.get(tag)

    def put(self, tag: str, compiled: Any) -> None:
        """Keep a grammar; one too large for the cache is not kept."""
        size = int(compiled.memory_size_bytes)
        with self._lock:
            if tag in self._entries or size > self._most_bytes:
                return
            self._entries[tag] = compiled
            self._bytes += size
            while len(self._entries) > self._most or self._bytes > self._most_bytes:
                _, dropped = self._entries.popitem(last=False)
                self._bytes -= int(dropped.memory_size_bytes)
