"""Queued calls in the order to admit them: by rank, and by when they are due."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from typing import TypeAlias

from aios_kernel.scheduler.protocol import Task

Rank: TypeAlias = tuple[float, ...]
CLASSES = {"interactive": 0, "normal": 1, "batch": 2}
"""Priority classes: a better one is admitted, comes back and is prefilled first."""
WORST_FIRST = (2, 1, 0)
"""Places in `CLASSES`, in the order in which contexts give way."""


class Waiting:
    """Calls without a context. Adding and removing one takes O(log n) and a move of memory.

    Attributes:
        families: how many calls of each wait.
    """

    def __init__(self) -> None:
        self._tasks: dict[int, tuple[Task, Rank, float]] = {}
        self._ranked: list[tuple[Rank, int]] = []
        self._due: list[tuple[float, int]] = []
        self._of: dict[str, int] = {}
        self.families: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, number: int) -> bool:
        return number in self._tasks

    def put(self, task: Task, rank: Rank, due_s: float) -> None:
        """Add a call; smaller ranks come first, and before all ranks those that are due."""
        self.remove(task.id)
        self._tasks[task.id] = (task, rank, due_s)
        self._of[task.program] = task.id
        self.families[task.family] += 1
        insort(self._ranked, (rank, task.id))
        insort(self._due, (due_s, task.id))

    def remove(self, number: int) -> Task | None:
        """It no longer waits; gives it, if it did."""
        entry = self._tasks.pop(number, None)
        if entry is None:
            return None
        task, rank, due_s = entry
        self.families[task.family] -= 1
        if not self.families[task.family]:
            del self.families[task.family]
        if self._of.get(task.program) == number:
            del self._of[task.program]
        del self._ranked[bisect_left(self._ranked, (rank, number))]
        del self._due[bisect_left(self._due, (due_s, number))]
        return task

    @property
    def best_class(self) -> int:
        """Of the calls that wait, by its place in `CLASSES`; beyond all when none does."""
        return int(self._ranked[0][0][0]) if self._ranked else len(CLASSES)

    def ranked(self) -> Iterator[Task]:
        """Best first."""
        return (self._tasks[number][0] for _, number in self._ranked)

    def due(self, now_s: float) -> Iterator[Task]:
        """Those that nobody may overtake any more, longest due first."""
        for due_s, number in self._due:
            if due_s > now_s:
                return
            yield self._tasks[number][0]

    def of(self, program: str) -> Task | None:
        """A program's queued call."""
        number = self._of.get(program)
        return self._tasks[number][0] if number is not None else None
