"""Parked contexts as the decisions of the program policy need them, kept up to date from what has changed.

Thousands of programs may pause: a decision touches those that something has happened to, and the few that it moves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from aios_kernel.scheduler.program_pauses import Pauses
from aios_kernel.scheduler.program_queue import CLASSES, WORST_FIRST, Waiting
from aios_kernel.scheduler.program_ranking import Lengths, Ranking
from aios_kernel.scheduler.program_timeline import Timeline
from aios_kernel.scheduler.protocol import Parked, Residency, Task, View
from aios_kernel.scheduler.rows import Journal

_SWAPPED = Residency.SWAPPED


class Kept:
    """What is parked, sorted into what may happen to it.

    Attributes:
        rows: by program.
        hot: in the pool with a call that goes on from it; the call that is soonest through first.
        returned: the same by class, then in order of parking.
        cold: in the pool, with a call that has no use for it.
        warm: outside the pool, with a call; in the order of calls.
        lengths: of the contexts of programs that pause, and of the warm ones.
    """

    def __init__(self, pauses: Pauses, waiting: Waiting) -> None:
        self.rows: dict[str, Parked] = {}
        self.hot, self.returned, self.warm = Ranking(), Ranking(), Ranking()
        self.cold: dict[str, None] = {}
        self.lengths = Lengths()
        self._waiting = waiting
        self._idle = tuple(Timeline(pauses) for _ in CLASSES)  # in the pool, without a call
        self._away = Timeline(pauses)  # outside the pool
        self._held = [0] * len(CLASSES)  # tokens of the idle ones, in whole blocks
        self._paused: dict[str, Parked] = {}  # idle or away: as they were sorted in
        self._live: dict[str, bool] = {}  # the others in the pool: whether they are hot, else cold
        self._numbers: dict[str, int] = {}  # in order of parking
        self._count = itertools.count()
        self._touched: dict[str, None] = {}
        self._gone: set[str] = set()
        self._journal: Journal[Parked] | None = None
        self._mark = 0
        self._block = 1

    def touch(self, program: str) -> None:
        """Something happened to a program: what it has parked is sorted in anew before the next decision."""
        if program in self.rows:
            self._touched[program] = None

    def update(self, view: View, busy: set[str]) -> list[str]:
        """Bring everything up to date; gives the programs whose contexts were not known.

        Args:
            view: what is seen.
            busy: programs with calls in the pool: what they have parked beside that stays as it is.
        """
        self._block = view.block_size
        self._gone.clear()
        new = self._compare(view.parked)
        if self._touched:
            tasks = view.by_id() if self.rows else {}
            touched, self._touched = self._touched, {}
            for program in touched:
                self._sort_in(program, tasks)
        for program in busy & self._paused.keys():
            self.take(program)
        return new

    def get(self, program: str) -> Parked | None:
        """What a program has parked, unless this plan gives it up."""
        return None if program in self._gone else self.rows.get(program)

    @property
    def is_empty(self) -> bool:
        """Whether this plan leaves nothing parked."""
        return len(self._gone) == len(self.rows)

    def take(self, program: str) -> None:
        """A context is moved or used up in this plan: it is no candidate for anything else in it."""
        self._sort_out(program)
        self._touched[program] = None

    def lose(self, program: str) -> None:
        """A context is given up."""
        self.take(program)
        self._gone.add(program)

    def idle(self, place: int, now_s: float) -> Iterator[tuple[float, Parked]]:
        """A class's contexts in the pool whose programs pause, with their expected rest, the longest first."""
        return ((rest_s, self.rows[name]) for rest_s, name in self._idle[place].latest(now_s))

    def first_to_go(self, now_s: float, below: int = -1) -> Parked | None:
        """Of the idle ones of worse classes than `below`."""
        for place in WORST_FIRST:
            name = self._idle[place].last(now_s) if place > below else None
            if name is not None:
                return self.rows[name]
        return None

    def away(self, now_s: float) -> Iterator[tuple[float, Parked]]:
        """Contexts outside the pool with their expected rest, soonest first."""
        return ((rest_s, self.rows[name]) for rest_s, name in self._away.soonest(now_s))

    def is_idle(self, program: str) -> bool:
        """Whether a program pauses whose context is in the pool."""
        parked = self._paused.get(program)
        return parked is not None and parked.residency is Residency.RESIDENT

    def order(self, parked: Parked, now_s: float) -> tuple[float, ...]:
        """Of idle ones: those that give way first are last."""
        place = CLASSES[parked.priority]
        return (place, *self._idle[place].key(parked.program, now_s))

    def number(self, program: str) -> int:
        """Its place in the order of parking."""
        return self._numbers[program]

    def held(self, below: int) -> int:
        """Tokens of idle contexts of worse classes than that."""
        return sum(self._held[below + 1 :])

    # --- what has changed -------------------------------------------------------------------------------------------

    def _compare(self, parked: Sequence[Parked]) -> list[str]:
        """Take over the rows that have come, gone or changed."""
        journal = parked if isinstance(parked, Journal) else None
        changed = None
        if journal is not None:
            changed = journal.since(self._mark) if journal is self._journal else None
            self._journal, self._mark = journal, journal.mark
        if journal is None or changed is None:
            return self._compare_all(parked)
        return [name for name in dict.fromkeys(changed) if self._take_over(name, journal.get(name))]

    def _compare_all(self, parked: Sequence[Parked]) -> list[str]:
        known, new = self.rows, list[str]()
        for row in parked:
            if known.get(row.program) is not row and self._take_over(row.program, row):
                new.append(row.program)
        if len(known) > len(parked):
            left = {row.program for row in parked}
            for name in [name for name in known if name not in left]:
                self._take_over(name, None)
        return new

    def _take_over(self, program: str, row: Parked | None) -> bool:
        """A row has changed; whether it is new."""
        before = self.rows.get(program)
        if row is None:
            self._sort_out(program)
            self.rows.pop(program, None)
            self._numbers.pop(program, None)
            self._touched.pop(program, None)
            return False
        self._touched[program] = None
        if before is None or before.since_s != row.since_s:
            self._numbers[program] = next(self._count)
        self.rows[program] = row
        return before is None

    def _sort_in(self, program: str, tasks: Mapping[int, Task]) -> None:
        if program in self._paused or program in self._live:
            self._sort_out(program)
        row = self.rows.get(program)
        if row is None:
            return
        queued = self._waiting.of(program)
        place, number = CLASSES[row.priority], self._numbers[program]
        if row.residency is _SWAPPED:
            if queued is not None:
                self.warm.put(program, (CLASSES[queued.priority], queued.arrived_s, number))
            timeline = self._away
        else:
            task = tasks.get(queued.id) if queued is not None else None
            if task is not None:
                self._sort_live(program, task, number)
                return
            self._held[place] += -(-row.length // self._block) * self._block
            timeline = self._idle[place]
        self._paused[program] = row
        self.lengths.add(row.length)
        timeline.put(program, number)

    def _sort_live(self, program: str, task: Task, number: int) -> None:
        """A context in the pool with a call: whether that goes on from it."""
        is_hot = self._live[program] = task.pending < task.length
        if is_hot:
            self.hot.put(program, (CLASSES[task.priority], task.pending, number))
            self.returned.put(program, (CLASSES[task.priority], number))
        else:
            self.cold[program] = None

    def _sort_out(self, program: str) -> None:
        row = self._paused.pop(program, None)
        if row is not None:
            self.lengths.remove(row.length)
            if row.residency is _SWAPPED:
                self._away.discard(program)
                self.warm.discard(program)
            else:
                place = CLASSES[row.priority]
                self._idle[place].discard(program)
                self._held[place] -= -(-row.length // self._block) * self._block
            return
        is_hot = self._live.pop(program, None)
        if is_hot:
            self.hot.discard(program)
            self.returned.discard(program)
        elif is_hot is not None:
            del self.cold[program]
