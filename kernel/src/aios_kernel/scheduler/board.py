"""The open calls as the policies see them: rows that are made anew only when something about them has changed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from aios_kernel.context.manager import ContextManager, Held
from aios_kernel.scheduler.protocol import Residency, Task
from aios_kernel.scheduler.rows import Rows

_RESIDENT, _QUEUED, _SWAPPED = Residency.RESIDENT, Residency.QUEUED, Residency.SWAPPED


class Board:
    """Rows by id, in order of arrival. Thousands may wait: a look costs what has changed, not what is there.

    A queued call changes when it is brought in (`touch`), or when what its program has parked does; one with KV may
    change at any time.
    """

    def __init__(self, contexts: ContextManager) -> None:
        self._contexts = contexts
        self._held: dict[int, Held] = {}
        self._rows: dict[int, Task] = {}
        self._order: dict[int, int] = {}
        self._count = itertools.count()
        self._placed: set[int] = set()  # with KV
        self._queued_of: dict[str, set[int]] = {}
        self._shown = (Rows(self._rows), MappingProxyType(self._rows))

    def add(self, held: Held) -> None:
        """A call has come."""
        number = held.generation.id
        self._held[number] = held
        self._order[number] = next(self._count)
        self._queued_of.setdefault(held.generation.order.program, set()).add(number)
        self._rows[number] = self._row(held)

    def row(self, number: int) -> Task:
        """Of a call that is there, as it was when something last changed."""
        return self._rows[number]

    def remove(self, number: int) -> None:
        """It has gone."""
        held = self._held.pop(number)
        del self._rows[number], self._order[number]
        self._placed.discard(number)
        self._unqueue(held, number)

    def touch(self, number: int) -> None:
        """A queued call may have been brought in."""
        held = self._held.get(number)
        if held is not None and held.residency is not Residency.QUEUED:
            self._placed.add(number)
            self._unqueue(held, number)

    def review(self, group: Sequence[Held]) -> None:
        """Something has changed that queued ones of these calls may have counted on."""
        for held in group:
            if held.generation.id in self._rows and held.residency is Residency.QUEUED:
                self._refreshed(held.generation.id)

    def look(self) -> tuple[Rows[Task], list[Task], Mapping[int, Task]]:
        """All rows, those with KV (both in order of arrival), and all by id.

        The first and the last are not copied: they show what is there when somebody looks.
        """
        self._compare_with_parked()
        placed = [self._refreshed(number) for number in sorted(self._placed, key=self._order.__getitem__)]
        everything, by_id = self._shown
        return everything, placed, by_id

    def _refreshed(self, number: int) -> Task:
        row = self._rows[number] = self._row(self._held[number])
        return row

    def _compare_with_parked(self) -> None:
        """What is parked in the pool need not be computed: the calls that go on from it have less to do."""
        for program in self._contexts.parking.take_changed():
            for number in self._queued_of.get(program, ()):
                self._refreshed(number)

    def _unqueue(self, held: Held, number: int) -> None:
        program = held.generation.order.program
        queued = self._queued_of.get(program)
        if queued is not None:
            queued.discard(number)
            if not queued:
                del self._queued_of[program]

    def _row(self, held: Held) -> Task:
        generation, order, context = held.generation, held.generation.order, held.context
        if context is not None:  # as the properties of `Held` say, without asking each of them
            residency, length = _RESIDENT, len(context.tokens)
            pending = length - context.computed
        elif held.snapshot is None and held.stored is None:
            residency, length = _QUEUED, len(order.prompt)
            pending = length - self._contexts.awaits(held)
        else:
            residency, length, pending = _SWAPPED, held.length, held.pending
        return Task(  # by place: a row of everybody in the pool is made in every step
            generation.id,
            order.program,
            order.agent,
            order.group,
            order.priority,
            generation.arrived_s,
            residency,
            length,
            pending,
            generation.generated,
            order.root,
            order.deadline_s,
        )
