"""Paused programs in the order in which they are expected back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from heapq import heappop, heappush

from aios_kernel.scheduler.program_pauses import Pauses
from aios_kernel.scheduler.program_ranking import Ranking

_ASKED = 8
"""Expected rests that are found anew at most at a time, beside those of new pauses; the others are a little old."""


class Timeline:
    """Programs by when their pauses are expected to end; ties in the order of their numbers.

    What is expected changes while a pause lasts. It is asked for when somebody looks, and again when it is stale.
    """

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses
        self._order = Ranking()
        self._numbers: dict[str, int] = {}
        self._new: dict[str, None] = {}
        self._asks: list[tuple[float, int, str]] = []
        self._ask_of: dict[str, int] = {}
        self._count = itertools.count()
        self._asked_s = -math.inf

    def put(self, name: str, number: int) -> None:
        """Add a program that is not there."""
        self._numbers[name] = number
        self._new[name] = None

    def discard(self, name: str) -> None:
        """Take a program out, if it is there."""
        if self._numbers.pop(name, None) is not None:
            self._new.pop(name, None)
            self._ask_of.pop(name, None)
            self._order.discard(name)

    def key(self, name: str, now_s: float) -> tuple[float, ...]:
        """Its place in the order, of a program that is there."""
        self._ask(now_s)
        return self._order.key(name)

    def soonest(self, now_s: float) -> Iterator[tuple[float, str]]:
        """Expected seconds and names, shortest first; not while it changes."""
        self._ask(now_s)
        return ((max(0.0, self._order.key(name)[0] - now_s), name) for name in self._order)

    def latest(self, now_s: float) -> Iterator[tuple[float, str]]:
        """The other way round."""
        self._ask(now_s)
        return ((max(0.0, self._order.key(name)[0] - now_s), name) for name in reversed(self._order))

    def last(self, now_s: float) -> str | None:
        """Who is expected last."""
        self._ask(now_s)
        return self._order.last()

    def _ask(self, now_s: float) -> None:
        """Find anew what is expected of new pauses, and of those that were asked about too long ago."""
        if now_s == self._asked_s and not self._new:
            return
        self._asked_s = now_s
        todo, self._new = [*self._new], {}
        asks, most = self._asks, len(todo) + _ASKED
        while asks and asks[0][0] <= now_s and len(todo) < most:
            _, number, name = heappop(asks)
            if self._ask_of.get(name) == number:
                todo.append(name)
        for name in todo:
            back_s, good_s = self._pauses.expected(name, now_s)
            number = self._ask_of[name] = next(self._count)
            self._order.put(name, (back_s, self._numbers[name]))
            heappush(asks, (good_s, number, name))
