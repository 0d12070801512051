"""What a view says of each program, for those who look from outside."""

from __future__ import annotations

from collections.abc import Mapping

from aios_kernel.process import Standing
from aios_kernel.scheduler.protocol import Residency, Task, View

_WAITS = {
    Residency.QUEUED: "room on the model",
    Residency.SWAPPED: "its swapped context",
    Residency.RESIDENT: "its first step",
}


def standings(view: View, waits: Mapping[int, str]) -> dict[str, Standing]:
    """Resident and swapped tokens of every program, those of parked contexts included, and why its call waits.

    `waits`: see `Plan.waits`.
    """
    found: dict[str, Standing] = {}
    for task in [*view.tasks]:  # the engine's thread goes on meanwhile
        standing = found.setdefault(task.program, Standing())
        standing.waiting_for = standing.waiting_for or waits.get(task.id) or _WAITS[task.residency]
        _add(standing, task.residency, _computed(task))
    for parked in [*view.parked]:
        _add(found.setdefault(parked.program, Standing()), parked.residency, parked.length)
    return found


def _computed(task: Task) -> int:
    return task.length - task.pending


def _add(standing: Standing, residency: Residency, tokens: int) -> None:
    if residency is Residency.RESIDENT:
        standing.resident_tokens += tokens
    elif residency is Residency.SWAPPED:
        standing.swapped_tokens += tokens
