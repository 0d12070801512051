"""Which cached block goes first when memory is needed."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

NEVER = math.inf
"""An expiry that does not come."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How much an idle block is wanted: `priority`, to be looked at again at `until` (seconds of the pool's clock)."""

    priority: int = 0
    until: float = NEVER


DEFAULT = Standing()


class IdleBlocks:
    """Idle blocks in the order of their eviction: expired ones, then the lowest priority, then the longest unused."""

    def __init__(self) -> None:
        self._standing: dict[int, Standing] = {}
        self._queues: dict[int, OrderedDict[int, None]] = {}
        self._expiries: list[tuple[float, int, int]] = []
        self._entered: dict[int, int] = {}
        self._clock = 0

    def __len__(self) -> int:
        return len(self._standing)

    def __contains__(self, block: int) -> bool:
        return block in self._standing

    def add(self, block: int, standing: Standing) -> None:
        """Take a block in, as the one used last of its priority."""
        self._standing[block] = standing
        self._queues.setdefault(standing.priority, OrderedDict())[block] = None
        self._clock += 1
        self._entered[block] = self._clock
        if standing.until < NEVER:
            heapq.heappush(self._expiries, (standing.until, self._clock, block))
            if len(self._expiries) > 64 + 2 * len(self._standing):
                self._expiries = [entry for entry in self._expiries if self._is_current(entry)]
                heapq.heapify(self._expiries)

    def remove(self, block: int) -> None:
        """Take a block out, because it is used again or forgotten."""
        priority = self._standing.pop(block).priority
        del self._entered[block]
        queue = self._queues[priority]
        del queue[block]
        if not queue:
            del self._queues[priority]

    def pop(self, now_s: float, assess: Callable[[int], Standing | None]) -> int:
        """Remove and give the block to evict; at least one is idle.

        Args:
            now_s: the time.
            assess: the standing of a block at this time, None if nobody wants it any longer.
        """
        while self._expiries and self._expiries[0][0] <= now_s:
            entry = heapq.heappop(self._expiries)
            if not self._is_current(entry):
                continue
            block = entry[2]
            self.remove(block)
            standing = assess(block)
            if standing is None:
                return block
            self.add(block, standing)
        block = next(iter(self._queues[min(self._queues)]))
        self.remove(block)
        return block

    def _is_current(self, entry: tuple[float, int, int]) -> bool:
        return self._entered.get(entry[2]) == entry[1]
