"""Queued calls in the order to admit them: by rank, and by when they are due."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, KeysView
from heapq import heapify, heappop, heappush
from typing import TypeAlias

from aios_kernel.scheduler.protocol import Task

Rank: TypeAlias = tuple[float, ...]
Entry: TypeAlias = tuple[Rank, int]
"""A key and the number of a call; the smallest first."""
CLASSES = {"interactive": 0, "normal": 1, "batch": 2}
"""Priority classes: a better one is admitted, comes back and is prefilled first."""
WORST_FIRST = (2, 1, 0)
"""Places in `CLASSES`, in the order in which contexts give way."""
_DEAD = 64
"""Entries of calls that have gone which are kept at least before they are swept out."""


class Line:
    """Entries in order, sorted only as far as somebody has looked: thousands may come at once, and few are looked at.

    Args:
        is_alive: whether an entry counts: those that have gone are swept out when they come up, or are too many.
    """

    def __init__(self, is_alive: Callable[[Entry], bool]) -> None:
        self._is_alive = is_alive
        self._front: list[Entry] = []  # in order; all of them come before those in the heap
        self._rest: list[Entry] = []
        self._dead = 0

    def put(self, entry: Entry) -> None:
        """Add an entry, in O(log n)."""
        if self._front and entry < self._front[-1]:
            insort(self._front, entry)
        else:
            heappush(self._rest, entry)

    def gone(self, entry: Entry) -> None:
        """One that was put is not alive any more."""
        if self._front and entry <= self._front[-1]:
            del self._front[bisect_left(self._front, entry)]
            return
        self._dead += 1
        if self._dead > _DEAD and 2 * self._dead > len(self._rest):
            self._rest = [each for each in self._rest if self._is_alive(each)]
            heapify(self._rest)
            self._dead = 0

    def __iter__(self) -> Iterator[Entry]:
        """In order; not while it changes."""
        yield from self._front
        while (entry := self._next()) is not None:
            yield entry

    def first(self) -> Entry | None:
        """The smallest."""
        return self._front[0] if self._front else self._next()

    def _next(self) -> Entry | None:
        """Sort one more."""
        while self._rest:
            entry = heappop(self._rest)
            if self._is_alive(entry):
                self._front.append(entry)
                return entry
            self._dead -= 1
        return None


class Waiting:
    """Calls without a context. Adding one takes O(log n), and so does looking at one for the first time.

    Attributes:
        families: how many calls of each wait.
    """

    def __init__(self) -> None:
        self._tasks: OrderedDict[int, tuple[Task, Entry, Entry]] = OrderedDict()  # those ranked longest ago in front
        self._unsure = 0  # of these in front were ranked by what was known before
        self._ranked = Line(self._is_ranked)
        self._due = Line(self._is_due)
        self._of: dict[str, int] = {}
        self.families: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, number: int) -> bool:
        return number in self._tasks

    @property
    def numbers(self) -> KeysView[int]:
        """Of all that wait; it goes on changing."""
        return self._tasks.keys()

    def put(self, task: Task, rank: Rank, due_s: float) -> None:
        """Add a call; smaller ranks come first, and before all ranks those that are due."""
        number = task.id
        if number in self._tasks:
            self.remove(number)
        ranked, due = (rank, number), ((due_s,), number)
        self._tasks[number] = (task, ranked, due)
        self._of[task.program] = number
        self.families[task.family] += 1
        self._ranked.put(ranked)
        self._due.put(due)

    def remove(self, number: int) -> Task | None:
        """It no longer waits; gives it, if it did."""
        known = self._tasks.pop(number, None)
        if known is None:
            return None
        self._unsure = min(self._unsure, len(self._tasks))
        task, ranked, due = known
        self.families[task.family] -= 1
        if not self.families[task.family]:
            del self.families[task.family]
        if self._of.get(task.program) == number:
            del self._of[task.program]
        self._ranked.gone(ranked)
        self._due.gone(due)
        return task

    def doubt(self) -> None:
        """Something was learned: ranks are to be found anew."""
        self._unsure = len(self._tasks)

    def rank_again(self, most: int, rank: Callable[[Task], Rank]) -> None:
        """Find the ranks of some calls anew, those ranked longest ago first."""
        for _ in range(min(most, self._unsure)):
            number, (task, before, due) = self._tasks.popitem(last=False)
            entry = (rank(task), number)
            self._tasks[number] = (task, entry, due)
            self._ranked.gone(before)
            self._ranked.put(entry)
            self._unsure -= 1

    @property
    def best_class(self) -> int:
        """Of the calls that wait, by its place in `CLASSES`; beyond all when none does."""
        first = self._ranked.first()
        return int(first[0][0]) if first is not None else len(CLASSES)

    def ranked(self) -> Iterator[Task]:
        """Best first."""
        return (self._tasks[number][0] for _, number in self._ranked)

    def due(self, now_s: float) -> Iterator[Task]:
        """Those that nobody may overtake any more, longest due first."""
        for (due_s,), number in self._due:
            if due_s > now_s:
                return
            yield self._tasks[number][0]

    def of(self, program: str) -> Task | None:
        """A program's queued call."""
        number = self._of.get(program)
        return self._tasks[number][0] if number is not None else None

    def _is_ranked(self, entry: Entry) -> bool:
        known = self._tasks.get(entry[1])
        return known is not None and known[1] is entry

    def _is_due(self, entry: Entry) -> bool:
        known = self._tasks.get(entry[1])
        return known is not None and known[2] is entry
