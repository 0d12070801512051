"""Preemptive priority classes, the earliest deadline first within a class, and no starvation.

A call of a higher class pushes running ones of a lower class out of the pool when memory is short, and out of the
batch when places are. A call that has waited `patience_s` since its arrival is served before all that have not,
whatever its class; such calls go in the order in which their patience ended. So nothing that arrives `patience_s` after
a call is ever served before it, and it waits for that long plus the work that came before.

Options: `patience_s` (default 60; 0: none, and lower classes may starve).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from aios_kernel.scheduler.options import check_known, number
from aios_kernel.scheduler.packing import Packer
from aios_kernel.scheduler.protocol import Arrived, Event, Finished, Options, Plan, Residency, Task, View

_OPTIONS = {"patience_s": "seconds after which a call is served before all younger ones"}
_CLASSES = {"interactive": 1, "normal": 2, "batch": 3}

Rank: TypeAlias = tuple[int, float, float, int]
"""Class (0: out of patience), deadline or end of patience, arrival, number; the smallest first."""


class Priority:
    """Keeps those that wait in heaps: a decision costs what it serves, not what waits."""

    name = "priority"
    parks = False

    def __init__(self, options: Options) -> None:
        """Raises ConfigError for an option that is unknown or impossible."""
        check_known(self.name, options, _OPTIONS)
        self._patience_s = number(self.name, options, "patience_s", 60.0, least=0.0) or math.inf
        self._new: dict[int, None] = {}
        self._open: set[int] = set()
        self._waiting: list[Rank] = []
        self._patient: list[tuple[float, int]] = []  # when the patience of those in `_waiting` ends

    def observe(self, event: Event, now_s: float) -> None:
        """Take note of who came and went."""
        if isinstance(event, Arrived):
            self._open.add(event.task)
            if event.row is not None:
                self._line_up(event.row, now_s)
            else:
                self._new[event.task] = None
        elif isinstance(event, Finished):
            self._open.discard(event.task)
            self._new.pop(event.task, None)

    def decide(self, view: View, now_s: float) -> Plan:
        """Serve by rank."""
        tasks = view.by_id()
        self._meet(tasks, now_s)
        self._age(tasks, now_s)
        ranks = {task.id: self._rank(task, now_s) for task in view.active()}
        residents = [task for task in view.active() if task.residency is Residency.RESIDENT]
        residents.sort(key=lambda task: ranks[task.id])
        swapped = sorted(ranks[task.id] for task in view.active() if task.residency is Residency.SWAPPED)
        taken: list[Rank] = []
        newcomers = heapq.merge(swapped, self._take(tasks, taken))
        ranked = heapq.merge((ranks[task.id] for task in residents), newcomers)
        packer = Packer(view, (tasks[rank[-1]] for rank in ranked), self._outranks(now_s), residents=residents)
        plan = packer.fill()
        for rank in taken:
            heapq.heappush(self._waiting, rank)
        return plan

    def _meet(self, tasks: Mapping[int, Task], now_s: float) -> None:
        for task in [tasks[task] for task in self._new if task in tasks]:
            del self._new[task.id]
            self._line_up(task, now_s)

    def _line_up(self, task: Task, now_s: float) -> None:
        heapq.heappush(self._waiting, self._rank(task, now_s))
        heapq.heappush(self._patient, (task.arrived_s + self._patience_s, task.id))

    def _age(self, tasks: Mapping[int, Task], now_s: float) -> None:
        """Rank those anew whose patience has ended; what they leave behind is dropped when it comes up."""
        while self._patient and self._patient[0][0] <= now_s:
            task = tasks.get(heapq.heappop(self._patient)[1])
            if task is not None:
                heapq.heappush(self._waiting, self._rank(task, now_s))

    def _take(self, tasks: Mapping[int, Task], taken: list[Rank]) -> Iterator[Rank]:
        """Queued calls, best first; those that are to be asked for again are put into `taken`."""
        seen: set[int] = set()
        while self._waiting:
            rank = heapq.heappop(self._waiting)
            task = tasks.get(rank[-1])
            if task is None:
                if rank[-1] in self._open:  # hidden for now
                    taken.append(rank)
            elif task.residency is Residency.QUEUED and task.id not in seen:
                seen.add(task.id)
                taken.append(rank)
                yield rank

    def _rank(self, task: Task, now_s: float) -> Rank:
        limit = task.arrived_s + self._patience_s
        if now_s >= limit:
            return (0, limit, task.arrived_s, task.id)
        deadline = task.deadline_s if task.deadline_s is not None else math.inf
        return (_CLASSES[task.priority], deadline, task.arrived_s, task.id)

    def _outranks(self, now_s: float) -> Callable[[Task, Task], bool]:
        """Only another class is pushed out: deadlines alone do not make contexts wander."""

        def may_displace(newcomer: Task, victim: Task) -> bool:
            return self._rank(newcomer, now_s)[0] < self._rank(victim, now_s)[0]

        return may_displace
