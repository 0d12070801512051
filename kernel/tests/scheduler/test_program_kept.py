"""What the program policy keeps sorted between decisions: it decides as one that looks at everything each time."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from aios_kernel.scheduler.program import ProgramPolicy
from aios_kernel.scheduler.program_ranking import Lengths, Ranking
from aios_kernel.scheduler.protocol import (
    Arrived,
    Event,
    Finished,
    Parked,
    Plan,
    ProgramEnded,
    Residency,
    Task,
    ToolBegan,
    ToolEnded,
    View,
)
from aios_kernel.scheduler.rows import Journal
from aios_kernel.syscalls import Priority

PRIORITIES: tuple[Priority, ...] = ("interactive", "normal", "batch")
RESIDENT, QUEUED, SWAPPED = Residency.RESIDENT, Residency.QUEUED, Residency.SWAPPED


class World:
    """Programs that call, park, pause and leave at random; what is planned for them happens or not, at random."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.now_s = 0.0
        self.tasks: dict[int, Task] = {}
        self.parked: dict[str, Parked] = {}
        self.rows = Journal(self.parked)
        self._class: dict[str, Priority] = {f"p{number}": self._chance.choice(PRIORITIES) for number in range(12)}
        self._next = 1

    def happen(self) -> list[Event]:
        self.now_s += self._chance.choice([0.01, 0.5, 7.0])
        program = self._chance.choice([*self._class])
        queued = [task for task in self.tasks.values() if task.program == program]
        if queued:
            return self._end(queued[0])
        if program not in self.parked or self._chance.random() < 0.4:
            return [self._call(program)]
        return self._chance.choice([
            [ToolBegan(program, "grep", self._chance.choice([None, 1.0, 400.0]))],
            [ToolEnded(program, "grep", self._chance.random() * 9)],
            self._leave(program),
        ])  # fmt: skip

    def carry_out(self, plan: Plan) -> None:
        for number in plan.admit:
            task = self.tasks[number]
            self._put(task.program, None)
            self.tasks[number] = replace(task, residency=RESIDENT, pending=1, generated=1)
        for names, place in ((plan.stow, SWAPPED), (plan.fetch, RESIDENT), (plan.drop, None)):
            for name in names:
                if name in self.parked and self._chance.random() < 0.8:
                    self._put(name, replace(self.parked[name], residency=place) if place else None)
        for number, task in self.tasks.items():
            if task.residency is QUEUED:
                self.tasks[number] = replace(task, pending=task.length - self._reused(task))

    def view(self, parked: Journal[Parked] | tuple[Parked, ...]) -> View:
        free = self._chance.choice([0, 160, 1600, 4800])
        index = dict(self.tasks)
        return View([*index.values()], free, 16_000, 16, 3, 512, True, parked, 2000, index=index)

    def _call(self, program: str) -> Event:
        number, self._next = self._next, self._next + 1
        length = self._chance.randint(300, 3000)
        task = Task(number, program, program, "g", self._class[program], self.now_s, QUEUED, length, length, 0)
        self.tasks[number] = replace(task, pending=length - self._reused(task))
        return Arrived(number, program)

    def _reused(self, task: Task) -> int:
        row = self.parked.get(task.program)
        return row.length if row and row.residency is RESIDENT and row.length < task.length else 0

    def _end(self, task: Task) -> list[Event]:
        del self.tasks[task.id]
        if task.residency is RESIDENT:
            row = Parked(task.program, "g", task.priority, RESIDENT, task.length - 1, self.now_s)
            self._put(task.program, None)
            self._put(task.program, row)
        return [Finished(task.id, task.program)]

    def _leave(self, program: str) -> list[Event]:
        self._put(program, None)
        return [ProgramEnded(program)]

    def _put(self, program: str, row: Parked | None) -> None:
        if row is None:
            self.parked.pop(program, None)
        else:
            self.parked[program] = row
        self.rows.note(program)


@pytest.mark.parametrize("forgetful", [False, True])
def test_it_decides_as_one_that_looks_at_everything_each_time(forgetful: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the journal has forgotten what happened since the last decision."""
    if forgetful:
        monkeypatch.setattr("aios_kernel.scheduler.rows._REMEMBERED", -100)
    moved = 0
    for seed in range(60):
        world, told, looks = World(seed), ProgramPolicy({}), ProgramPolicy({})
        for _ in range(120):
            for event in world.happen():
                told.observe(event, world.now_s)
                looks.observe(event, world.now_s)
            view = world.view(world.rows)
            plan = told.decide(view, world.now_s)
            afresh = dataclasses.replace(view, parked=tuple(replace(row) for row in world.parked.values()))
            assert plan == looks.decide(afresh, world.now_s)
            moved += len(plan.stow) + len(plan.fetch) + len(plan.drop)
            world.carry_out(plan)
    assert moved > 1000


def test_no_more_calls_are_admitted_than_a_step_can_take() -> None:
    tasks = [Task(n, f"p{n}", "a", "g", "normal", 0.0, QUEUED, 64, 64, 0) for n in range(20)]
    urgent = Task(20, "p20", "a", "g", "interactive", 1.0, QUEUED, 64, 64, 0)
    made = ProgramPolicy({})
    for task in tasks:
        made.observe(Arrived(task.id, task.program), 0.0)
    view = View(tasks, 1 << 20, 1 << 20, 16, 4, 512, can_swap=False)
    assert made.decide(view, 0.0).admit == [0, 1, 2, 3]
    running = [replace(task, residency=RESIDENT) for task in tasks[:4]]
    made.observe(Arrived(20, "p20"), 1.0)
    plan = made.decide(dataclasses.replace(view, tasks=[*running, *tasks[4:], urgent]), 1.0)
    assert plan.admit == [20]
    assert plan.run[0] == (20, 64)


def test_a_journal_tells_each_reader_what_it_has_missed() -> None:
    rows: dict[str, int] = {}
    journal = Journal(rows)
    for number in range(5000):
        rows["a" if number % 2 else "b"] = number
        journal.note("a" if number % 2 else "b")
    assert journal.since(4997) == ["a", "b", "a"]
    assert journal.since(5000) == []
    assert journal.since(0) is None
    assert (journal.get("a"), journal.get("c"), [*journal]) == (4999, None, [4998, 4999])


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.integers(0, 5)), max_size=60))
def test_a_ranking_is_what_sorting_gives(changes: list[tuple[str, int | None]]) -> None:
    ranking, expected = Ranking(), dict[str, int]()
    for name, key in changes:
        if key is None:
            ranking.discard(name)
            expected.pop(name, None)
        else:
            ranking.put(name, (key,))
            expected[name] = key
        order = sorted(expected, key=lambda name: (expected[name], name))
        assert ([*ranking], [*reversed(ranking)]) == (order, order[::-1])
        assert ranking.last() == (order[-1] if order else None)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=60))
def test_what_lengths_are_short_of_is_their_sum(changes: list[tuple[int, int]]) -> None:
    lengths, there = Lengths(), list[int]()
    for length, final in changes:
        if length in there:
            there.remove(length)
            lengths.remove(length)
        else:
            there.append(length)
            lengths.add(length)
        assert lengths.short_of(final) == sum(max(0, final - each) for each in there)
