"""Changes that the vector index has not taken over yet, kept in RAM and searched exactly."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import NamedTuple, final

import numpy as np

from aios_kernel.memory.index import Hit, Space, Vector, similarities


class Latest(NamedTuple):
    """The state of one note since outbox line `ticket`; no vector: it was deleted or lost it."""

    ticket: int
    vector: Vector | None


@final
class Recent:
    """Latest states, space by space; written by the threads that change notes, read by searches."""

    def __init__(self) -> None:
        self._spaces: dict[Space, dict[str, Latest]] = {}
        self._lock = threading.Lock()

    def put(self, space: Space, id: str, latest: Latest) -> None:
        """Note a change."""
        with self._lock:
            self._spaces.setdefault(space, {})[id] = latest

    def settle(self, space: Space, last: int) -> None:
        """Forget the changes up to an outbox line: the index has them."""
        with self._lock:
            kept = {id: latest for id, latest in self._spaces.get(space, {}).items() if latest.ticket > last}
            if kept:
                self._spaces[space] = kept
            else:
                self._spaces.pop(space, None)

    def of(self, space: Space) -> dict[str, Latest]:
        """A copy of the open changes of a space."""
        with self._lock:
            return dict(self._spaces.get(space, {}))


def nearest(recent: Mapping[str, Latest], vector: Vector, allowed: Collection[str] | None) -> list[Hit]:
    """Exact similarities of the recent notes, in no order."""
    known = [
        (id, latest.vector)
        for id, latest in recent.items()
        if latest.vector is not None and (allowed is None or id in allowed)
    ]
    if not known:
        return []
    scores = similarities(np.stack([stored for _, stored in known]), vector)
    return [Hit(id, float(score)) for (id, _), score in zip(known, scores, strict=True)]
