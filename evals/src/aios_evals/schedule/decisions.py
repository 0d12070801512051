"""What one decision of a policy costs: with 64 running contexts, and with 10,000 programs that wait."""

from __future__ import annotations

import statistics
import time
from typing import Any

from aios_evals.schedule.cells import percentile
from aios_kernel.plugins import Plugins
from aios_kernel.scheduler.protocol import Arrived, Computed, Finished, Parked, Policy, Residency, Task, View

_BLOCK, _LENGTH = 16, 2048


def run(repeats: int = 2000) -> list[dict[str, Any]]:
    """A row a policy and number of programs: microseconds of the events of a step and of its decision."""
    rows: list[dict[str, Any]] = []
    for name, factory in sorted(Plugins().named("aios_kernel_policies").items()):
        for queued in (0, 10_000 - 128):
            rows.append(_measure(name, factory({}), queued, max(100, repeats // (10 if queued else 1))))
    return rows


def _measure(name: str, policy: Policy, queued: int, repeats: int) -> dict[str, Any]:
    """64 calls run, 64 contexts are parked, the others wait and do not fit."""
    for number in range(128 + queued):
        policy.observe(Arrived(number, f"p{number}"), 0.0)
    parked = tuple(_parked(number) for number in range(64, 128))
    waiting = [_task(number, Residency.QUEUED, _LENGTH, 0) for number in range(128, 128 + queued)]
    policy.decide(_view([*(_task(n, Residency.QUEUED, _LENGTH, 0) for n in range(128)), *waiting], ()), 0.0)
    for number in range(64, 128):
        policy.observe(Finished(number, f"p{number}"), 0.0)
    deciding: list[float] = []
    telling: list[float] = []
    for step in range(repeats):
        view = _view([*(_task(n, Residency.RESIDENT, 1, step + 1) for n in range(64)), *waiting], parked)
        began = time.perf_counter()
        policy.decide(view, 1.0 + step / 1000)
        decided = time.perf_counter()
        for number in range(64):
            policy.observe(Computed(number, f"p{number}", 1, 1), 1.0 + step / 1000)
        telling.append(time.perf_counter() - decided)
        deciding.append(decided - began)
    return {
        "policy": name,
        "running": 64,
        "programs": 128 + queued,
        "decision_us": statistics.median(deciding) * 1e6,
        "decision_p99_us": percentile(sorted(deciding), 0.99) * 1e6,
        "events_us": statistics.median(telling) * 1e6,
    }


def _view(tasks: list[Task], parked: tuple[Parked, ...]) -> View:
    """With the tables that the dispatcher keeps."""
    total = 128 * (_LENGTH + 1024)
    placed = [task for task in tasks if task.residency is not Residency.QUEUED]
    index = {task.id: task for task in tasks}
    return View(tasks, 256, total, _BLOCK, 256, 8192, True, parked, 0, placed, index)


def _task(number: int, residency: Residency, pending: int, generated: int) -> Task:
    length = _LENGTH + generated
    return Task(
        number, f"p{number}", "coder", "g", "normal", 0.001 * number, residency, length, pending, generated
    )  # fmt: skip


def _parked(number: int) -> Parked:
    return Parked(f"p{number}", "g", "normal", Residency.RESIDENT, _LENGTH, 0.5)
