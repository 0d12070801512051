"""`aios bench policies`: what one decision costs.

Steady states of each policy of the registry: running contexts that decode while so many calls wait, of as many agents;
the pool is full, so that a decision finds nobody to admit. Every measured decision follows the events of a step.
For policies that park, also with so many contexts of programs that pause, half of them in the pool, where in every step
one pauses and one goes on.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from aios_kernel.plugins import Plugins
from aios_kernel.scheduler.protocol import (
    Arrived,
    Computed,
    Event,
    Parked,
    Plan,
    Policy,
    ProgramEnded,
    Residency,
    Task,
    ToolBegan,
    View,
)
from aios_kernel.scheduler.rows import Journal, Rows

SHAPES = ((64, 0, 0), (64, 1000, 0), (64, 10_000, 0), (64, 64, 1000), (64, 64, 10_000))
"""Calls that run and that wait, and parked contexts."""
_PROMPT = 512
_CONTEXT, _PAUSE_S = 16_384, 30.0
"""Of programs that pause: worth keeping over so long a pause."""
_BLOCK = 16
_STEP_S = 0.01


def run(steps: int = 200, shapes: Sequence[tuple[int, int, int]] = SHAPES) -> list[dict[str, Any]]:
    """Rows `{policy, running, programs, parked, decide_*_us, first_us, arrive_us, observe_p50_us}`.

    `arrive_us` is what one newcomer takes when it is announced, `first_us` the decision that meets all of them (and
    whatever is parked), `decide_p50_us` and `decide_p99_us` those after it by the clock, `decide_cpu_p99_us` by the
    thread's CPU time, `observe_p50_us` the events of one step.
    """
    rows: list[dict[str, Any]] = []
    for name, make in Plugins().named("aios_kernel_policies").items():
        for running, waiting, parked in shapes:
            policy = make({})
            if parked and not getattr(policy, "parks", False):
                continue
            shape = {"policy": name, "running": running, "programs": waiting, "parked": parked}
            rows.append({**shape, **_measure(policy, _Crowd(running, waiting, parked), steps)})
    return rows


def _measure(policy: Policy, crowd: _Crowd, steps: int) -> dict[str, float]:
    taken: list[float] = []
    used: list[float] = []
    told: list[float] = []
    arrivals, pauses = crowd.begin()
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        for event in arrivals:
            policy.observe(event, 0.0)
        arrive_s = time.perf_counter() - began
        for event in pauses:
            policy.observe(event, 0.0)
        for step in range(steps):
            now_s = _STEP_S * (step + 1)
            view = crowd.view(step)
            began, cpu = time.perf_counter(), time.thread_time()
            plan = policy.decide(view, now_s)
            used.append(time.thread_time() - cpu)
            taken.append(time.perf_counter() - began)
            events = crowd.carry_out(plan, now_s)
            began = time.perf_counter()
            for event in events:
                policy.observe(event, now_s)
            told.append(time.perf_counter() - began)
    finally:
        gc.enable()
    first, ordered = taken[0], sorted(taken[1:])
    return {
        "decide_p50_us": ordered[len(ordered) // 2] * 1e6,
        "decide_p99_us": ordered[int(0.99 * len(ordered))] * 1e6,
        "decide_cpu_p99_us": sorted(used[1:])[int(0.99 * len(ordered))] * 1e6,
        "first_us": first * 1e6,
        "arrive_us": arrive_s / len(arrivals) * 1e6,
        "observe_p50_us": sorted(told)[len(told) // 2] * 1e6,
    }


class _Crowd:
    """Who runs, waits and pauses; shows it as the dispatcher does, without copies."""

    def __init__(self, running: int, waiting: int, parked: int) -> None:
        self._running = running
        self._tasks = {number: _task(number, number < running) for number in range(running + waiting)}
        self._parked = {f"q{number}": _row(number) for number in range(parked)}
        self._rows, self._shown = Rows(self._tasks), Journal(self._parked)
        self._next = parked

    def begin(self) -> tuple[list[Event], list[Event]]:
        """What has happened so far: calls that came, tools that began."""
        arrivals: list[Event] = [Arrived(task.id, task.program, task) for task in self._tasks.values()]
        return arrivals, [ToolBegan(name, "tool", _PAUSE_S) for name in self._parked]

    def view(self, step: int) -> View:
        """The next step's: those that run have one token more. Room for them is left, for a newcomer there is none."""
        placed: list[Task] = []
        for number in range(self._running):
            row = replace(self._tasks[number], length=_PROMPT + 1 + step % _BLOCK, generated=1 + step)
            self._tasks[number] = row
            placed.append(row)
        return View(
            tasks=self._rows,
            kv_free=_PROMPT - _BLOCK,
            kv_total=2 * self._running * _PROMPT + len(self._parked) * _CONTEXT // 2,
            block_size=_BLOCK,
            max_batch=2 * self._running,
            max_step_tokens=2048,
            can_swap=True,
            parked=self._shown,
            placed=placed,
            index=MappingProxyType(self._tasks),
        )

    def carry_out(self, plan: Plan, now_s: float) -> list[Event]:
        """What it makes happen, and that one program's call ended and another's context was taken up."""
        events: list[Event] = [Computed(number, self._tasks[number].program, tokens, 1) for number, tokens in plan.run]
        if self._parked:
            gone, came = next(iter(self._parked)), f"q{self._next}"
            del self._parked[gone]
            self._parked[came] = _row(self._next, now_s)
            self._shown.note(gone)
            self._shown.note(came)
            self._next += 1
            events += [ProgramEnded(gone), ToolBegan(came, "tool", _PAUSE_S)]
        return events


def _row(number: int, since_s: float = 0.0) -> Parked:
    place = Residency.SWAPPED if number % 2 else Residency.RESIDENT
    return Parked(f"q{number}", "g", "normal", place, _CONTEXT - number % 100, since_s)


def _task(number: int, resident: bool) -> Task:
    return Task(
        id=number,
        program=f"p{number}",
        agent=f"a{number}",
        group="g",
        priority="normal",
        arrived_s=number * 1e-6,
        residency=Residency.RESIDENT if resident else Residency.QUEUED,
        length=_PROMPT,
        pending=1 if resident else _PROMPT,
        generated=int(resident),
    )
