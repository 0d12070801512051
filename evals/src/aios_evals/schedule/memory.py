"""The pool, its prefix cache and host memory, in tokens: what a simulated engine has where.

Contexts of open calls and parked ones are pinned, in whole blocks. What nobody pins stays in the prefix cache while
there is room: eviction takes the least recently used program's tail first, to host memory if the engine offloads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias

Order: TypeAlias = Callable[[OrderedDict[str, int]], str]
"""Chooses the program to evict from; the mapping is in order of last use, oldest first."""


def oldest(cached: OrderedDict[str, int]) -> str:
    """Least recently used."""
    return next(iter(cached))


class Cache:
    """Tokens a program, evicted from the tail. Holds at most what `fit` is told."""

    def __init__(self, order: Order) -> None:
        self.held: OrderedDict[str, int] = OrderedDict()
        self.total = 0
        self._order = order

    def put(self, program: str, tokens: int) -> None:
        """As the most recently used."""
        self.take(program)
        if tokens > 0:
            self.held[program] = tokens
            self.total += tokens

    def take(self, program: str) -> int:
        """Remove what there is of a program."""
        tokens = self.held.pop(program, 0)
        self.total -= tokens
        return tokens

    def grow(self, program: str, tokens: int) -> None:
        """More of a program, in front of what is there."""
        self.held[program] = self.held.get(program, 0) + tokens
        self.held.move_to_end(program)
        self.total += tokens

    def fit(self, room: int) -> list[tuple[str, int]]:
        """Evict until at most `room` tokens are held; gives who lost how much."""
        lost: list[tuple[str, int]] = []
        while self.total > room:
            victim = self._order(self.held)
            tokens = min(self.held[victim], self.total - room)
            self.held[victim] -= tokens
            self.total -= tokens
            if not self.held[victim]:
                del self.held[victim]
            lost.append((victim, tokens))
        return lost


class Memory:
    """Pool and host.

    Args:
        pool: tokens of KV on the device, whole blocks.
        host: tokens of KV in host memory.
        block: tokens a block.
        offload: whether evicted parts of the prefix cache go to host memory.
        order: of eviction, in the pool and the host.

    Attributes:
        pinned: tokens of the pool in use, in whole blocks.
        host_pinned: tokens of host memory that swapped contexts take.
        written: tokens moved to the host so far by eviction.
    """

    def __init__(self, pool: int, host: int, block: int, *, offload: bool = False, order: Order = oldest) -> None:
        self.pool, self.host, self.block = pool // block * block, host, block
        self.pinned = 0
        self.host_pinned = 0
        self.written = 0
        self._offload = offload and host > 0
        self.cache = Cache(order)
        self.host_cache = Cache(order)

    @property
    def free(self) -> int:
        """Tokens that can be pinned; cached ones give way."""
        return self.pool - self.pinned

    @property
    def host_free(self) -> int:
        """Tokens that can still be swapped out."""
        return self.host - self.host_pinned

    def blocks(self, tokens: int) -> int:
        """Rounded up to whole blocks, in tokens."""
        return -(-tokens // self.block) * self.block

    def pin(self, before: int, after: int) -> None:
        """A context that held `before` tokens now holds `after`."""
        self.pinned += self.blocks(after) - self.blocks(before)
        if self.pinned > self.pool:
            raise AssertionError(f"the pool of {self.pool} tokens is overcommitted: {self.pinned}")
        self._make_room()

    def leave(self, program: str, tokens: int) -> None:
        """A context is unpinned; its whole blocks stay cached while there is room."""
        self.pinned -= self.blocks(tokens)
        self.cache.put(program, tokens // self.block * self.block)
        self._make_room()

    def found(self, program: str) -> tuple[int, int]:
        """Tokens of a program that the prefix cache has in the pool, and behind these in the host."""
        return self.cache.held.get(program, 0), self.host_cache.held.get(program, 0)

    def forget(self, program: str) -> None:
        """Nothing of a program stays cached."""
        self.cache.take(program)
        self.host_cache.take(program)

    def pin_host(self, tokens: int) -> None:
        """Swapped out (positive) or gone (negative)."""
        self.host_pinned += tokens
        if not 0 <= self.host_pinned <= self.host:
            raise AssertionError(f"host memory of {self.host} tokens is overcommitted: {self.host_pinned}")

    def _make_room(self) -> None:
        if self.cache.total <= self.pool - self.pinned:
            return
        for program, tokens in self.cache.fit(self.pool - self.pinned):
            if self._offload:
                self.host_cache.grow(program, tokens)
                self.written += tokens
        if self._offload:
            self.host_cache.fit(self.host)
