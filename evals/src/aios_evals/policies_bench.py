"""`aios bench policies`: what one decision costs.

Steady states of each policy of the registry: running contexts that decode while so many calls wait, of as many agents;
the pool is full, so that a decision finds nobody to admit. Every measured decision follows the events of a step.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aios_kernel.plugins import Plugins
from aios_kernel.scheduler.protocol import Arrived, Computed, Policy, Residency, Task, View

SHAPES = ((64, 0), (64, 1000), (64, 10_000))
_PROMPT = 512
_BLOCK = 16


def run(steps: int = 200, shapes: Sequence[tuple[int, int]] = SHAPES) -> list[dict[str, Any]]:
    """Rows `{policy, running, programs, decide_p50_us, decide_p99_us, first_us, observe_p50_us}`.

    `first_us` is the decision that meets everybody who waits, `observe_p50_us` the events of one step.
    """
    rows: list[dict[str, Any]] = []
    for name, make in Plugins().named("aios_kernel_policies").items():
        for running, waiting in shapes:
            shape = {"policy": name, "running": running, "programs": waiting}
            rows.append({**shape, **_measure(make({}), running, waiting, steps)})
    return rows


def _measure(policy: Policy, running: int, waiting: int, steps: int) -> dict[str, float]:
    tasks = {number: _task(number, number < running) for number in range(running + waiting)}
    for task in tasks.values():
        policy.observe(Arrived(task.id, task.program), 0.0)
    taken: list[float] = []
    told: list[float] = []
    gc.collect()
    gc.disable()
    try:
        for step in range(steps):
            view = _view(tasks, running, step)
            began = time.perf_counter()
            plan = policy.decide(view, 0.01 * step)
            taken.append(time.perf_counter() - began)
            events = [Computed(number, tasks[number].program, tokens, 1) for number, tokens in plan.run]
            began = time.perf_counter()
            for event in events:
                policy.observe(event, 0.01 * step)
            told.append(time.perf_counter() - began)
    finally:
        gc.enable()
    first, ordered = taken[0], sorted(taken[1:])
    return {
        "decide_p50_us": ordered[len(ordered) // 2] * 1e6,
        "decide_p99_us": ordered[int(0.99 * len(ordered))] * 1e6,
        "first_us": first * 1e6,
        "observe_p50_us": sorted(told)[len(told) // 2] * 1e6,
    }


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


def _view(tasks: dict[int, Task], running: int, step: int) -> View:
    """The next step's view: those that run have one token more. Room for them is left, for a newcomer there is none."""
    for number in range(running):
        tasks[number] = replace(tasks[number], length=_PROMPT + 1 + step % _BLOCK, generated=1 + step)
    return View(
        tasks=[*tasks.values()],
        kv_free=_PROMPT - _BLOCK,
        kv_total=running * 2 * _PROMPT,
        block_size=_BLOCK,
        max_batch=2 * running,
        max_step_tokens=2048,
        can_swap=True,
        placed=[tasks[number] for number in range(running)],
        index=dict(tasks),
    )
