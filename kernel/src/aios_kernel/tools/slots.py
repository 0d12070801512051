"""Places to run in: limits on tool calls at a time, and the fair queues before them."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from typing import Literal, NamedTuple, TypeAlias, final

Pool: TypeAlias = Literal["thread", "job"]


class Demand(NamedTuple):
    """What a call needs free to run.

    Attributes:
        name: what is counted against `max_running`; calls of one name share that limit.
        max_running: calls of that name at a time; None: any number.
        exclusive: a group of which one call runs at a time; None: none.
        pool: what else it takes one of: the kernel's `thread`s, the processes of `job`s, or nothing.
    """

    name: str
    max_running: int | None = None
    exclusive: str | None = None
    pool: Pool | None = None


class _Waiter(NamedTuple):
    """One call in a queue; the lower `tag` goes first."""

    tag: int
    number: int
    ready: asyncio.Future[None]


@final
class Slots:
    """Grants places on one event loop; not thread-safe.

    Who waits for the same thing takes turns by owner (start-time fair queueing with calls of cost 1): a program that
    asks for a thousand places delays another one's next call by one of them. A call that finds its places free does
    not overtake anybody, because whoever could run is not waiting.

    Args:
        threads: calls at a time that take a thread of the kernel.
        jobs: long jobs at a time.
    """

    def __init__(self, threads: int = 64, jobs: int = 16) -> None:
        self._free: dict[Pool, int] = {"thread": threads, "job": jobs}
        self._running: Counter[str] = Counter()
        self._exclusive: set[str] = set()
        self._queues: dict[Demand, list[_Waiter]] = {}
        self._numbers = itertools.count()
        self._clock = 0
        self._last: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """Calls that wait for a place."""
        return sum(len(queue) for queue in self._queues.values())

    def take_now(self, demand: Demand) -> bool:
        """Take a place if it is free; whether it was."""
        if not self._fits(demand):
            return False
        self._enter(demand)
        return True

    async def take(self, demand: Demand, owner: str) -> None:
        """Wait for a place and take it. When cancelled, none is held.

        Args:
            demand: what must be free.
            owner: whose turn it is, such as a program's id.
        """
        if self.take_now(demand):
            return
        waiter = self._queue(demand, owner)
        try:
            await waiter.ready
        except asyncio.CancelledError:
            if not waiter.ready.cancelled():  # granted in the same turn of the loop
                self.give(demand)
            elif waiter in self._queues.get(demand, ()):
                self._leave(demand, waiter)
            raise

    def hold(self, demand: Demand) -> None:
        """Take a place that somebody has already, though there may be none: a job that outlived its kernel."""
        self._enter(demand)

    def give(self, demand: Demand) -> None:
        """Free a place, and let those in who fit now."""
        if demand.pool is not None:
            self._free[demand.pool] += 1
        self._running[demand.name] -= 1
        if not self._running[demand.name]:
            del self._running[demand.name]
        if demand.exclusive is not None:
            self._exclusive.discard(demand.exclusive)
        while (first := self._first()) is not None:
            demand, waiter = first
            self._leave(demand, waiter)
            if not waiter.ready.cancelled():
                self._enter(demand)
                self._clock = max(self._clock, waiter.tag)
                waiter.ready.set_result(None)

    def _fits(self, demand: Demand) -> bool:
        if demand.pool is not None and self._free[demand.pool] <= 0:
            return False
        if demand.max_running is not None and self._running[demand.name] >= demand.max_running:
            return False
        return demand.exclusive is None or demand.exclusive not in self._exclusive

    def _enter(self, demand: Demand) -> None:
        if demand.pool is not None:
            self._free[demand.pool] -= 1
        self._running[demand.name] += 1
        if demand.exclusive is not None:
            self._exclusive.add(demand.exclusive)

    def _queue(self, demand: Demand, owner: str) -> _Waiter:
        if not self._queues:
            self._last.clear()  # nobody waits: every owner begins anew
        tag = max(self._clock, self._last.get(owner, 0)) + 1
        self._last[owner] = tag
        waiter = _Waiter(tag, next(self._numbers), asyncio.get_running_loop().create_future())
        heapq.heappush(self._queues.setdefault(demand, []), waiter)
        return waiter

    def _first(self) -> tuple[Demand, _Waiter] | None:
        """Whose turn it is among the heads of the queues that fit."""
        heads = [(queue[0], demand) for demand, queue in self._queues.items() if self._fits(demand)]
        if not heads:
            return None
        waiter, demand = min(heads, key=lambda head: head[0][:2])
        return demand, waiter

    def _leave(self, demand: Demand, waiter: _Waiter) -> None:
        queue = self._queues[demand]
        if queue[0] is waiter:
            heapq.heappop(queue)
        else:  # it gave up
            queue.remove(waiter)
            heapq.heapify(queue)
        if not queue:
            del self._queues[demand]
