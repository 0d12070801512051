"""What the expert cache asks of its surroundings, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

S = TypeVar("S")


class Ranking(Protocol):
    """Says how soon each expert will be used."""

    def distances(self) -> NDArray[np.float64]:
        """Of every expert, in layers until its next use; what is farthest is evicted first. From any thread."""
        ...


class Slots(Protocol[S]):
    """Memory that experts are read into. Called by the cache's threads, `load` by several at once."""

    def size(self, number: int) -> int:
        """Bytes of the slot that an expert needs; experts of one size share their slots."""
        ...

    def make(self, number: int) -> S:
        """A new slot for an expert."""
        ...

    def load(self, number: int, slot: S) -> None:
        """Read an expert into a slot. Raises OSError."""
        ...

    def release(self, slot: S) -> None:
        """The use of a slot has ended."""
        ...

    def drop(self, slot: S) -> None:
        """A slot is given up: free its memory, whoever still refers to it."""
        ...


@dataclass(slots=True)
class CacheCounts:
    """What the cache did since it was made; experts, not bytes, unless it says so."""

    hits: int = 0
    """Experts that were in memory when a layer asked for them..."""
    late: int = 0
    """...or on their way, as foreseen..."""
    misses: int = 0
    """...or neither."""
    prefetched: int = 0
    bytes_read: int = 0
    failed: int = 0
    waited_s: float = 0.0
    """Seconds in which a layer could do nothing but wait for an expert."""

    @property
    def hit_rate(self) -> float:
        """Share of `hits` in all that was asked for."""
        return self.hits / max(1, self.hits + self.late + self.misses)
