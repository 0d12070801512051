"""Limits of agents and groups around any policy: rates, totals and calls at once. Pure, like the policies.

A rate is a token bucket: over any time of T seconds at most `burst_tokens` + rate * T tokens are computed, and what one
step computes on top. Calls that have to wait for it are kept from the policy's sight; a running one is swapped out
when it has to wait for long. A total counts from the kernel's start; a call that would go on beyond it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aios_kernel.errors import BudgetExceeded
from aios_kernel.scheduler.protocol import (
    Arrived,
    Computed,
    Event,
    Finished,
    Plan,
    Policy,
    Residency,
    Task,
    View,
)
from aios_kernel.scheduler.settings import Limit, Limits

_LONG_S = 0.25
"""A running call that has to wait for longer than this gives its memory up."""


@dataclass(slots=True, eq=False)
class _Meter:
    """What one agent or group has used."""

    key: str
    name: str
    limit: Limit
    spent: int = 0
    level: float = 0.0
    """Tokens in the bucket; below 0 after a step that took more."""
    filled_s: float | None = None

    def fill(self, now_s: float) -> None:
        if self.limit.tokens_per_s is None:
            return
        size = self.limit.burst_tokens or self.limit.tokens_per_s
        if self.filled_s is None:
            self.level = size
        else:
            self.level = min(size, self.level + self.limit.tokens_per_s * max(0.0, now_s - self.filled_s))
        self.filled_s = now_s

    def charge(self, tokens: int) -> None:
        self.spent += tokens
        self.level -= tokens

    def wait_s(self) -> float:
        """Seconds until it may compute again."""
        if self.limit.tokens_per_s is None or self.level > 0:
            return 0.0
        return (1.0 - self.level) / self.limit.tokens_per_s

    def refusal(self, task: Task) -> BudgetExceeded | None:
        total = self.limit.total_tokens
        need = task.pending if task.residency is Residency.QUEUED else 1
        if total is None or self.spent + need <= total:
            return None
        return BudgetExceeded(
            f'agent "{task.agent}" is over the total of {total:,} tokens of {self.key} "{self.name}" '
            f"({self.spent:,} used, {need:,} more needed)",
            agent=task.agent,
            fix=f"raise total_tokens in [limits.{self.key}s.{self.name}] of aios.toml",
        )


class Meters:
    """What the limited agents and groups have used since the kernel's start; outlives a change of the policy."""

    def __init__(self, limits: Limits) -> None:
        self.agents = {name: _Meter("agent", name, limit) for name, limit in limits.agents.items()}
        self.groups = {name: _Meter("group", name, limit) for name, limit in limits.groups.items()}

    def of(self, task: Task) -> list[_Meter]:
        """The meters that count a call."""
        found = [self.agents.get(task.agent), self.groups.get(task.group)]
        return [meter for meter in found if meter is not None]

    def fill(self, now_s: float) -> None:
        """Let the buckets fill up to a time."""
        for meter in (*self.agents.values(), *self.groups.values()):
            meter.fill(now_s)


class Limited:
    """A policy that sees only what the limits allow; to it, a queued call arrives when it may be served."""

    def __init__(self, inner: Policy, meters: Meters) -> None:
        self.inner = inner
        self.name = inner.name
        self.parks = getattr(inner, "parks", False)
        self._meters = meters
        self._meters_of: dict[int, list[_Meter]] = {}  # of open calls that are limited
        self._new: dict[int, None] = {}
        self._told: set[int] = set()  # calls that the policy has heard of

    def observe(self, event: Event, now_s: float) -> None:
        """Count, and hand on."""
        if isinstance(event, Arrived):
            self._new[event.task] = None
            return
        if isinstance(event, Computed):
            for meter in self._meters_of.get(event.task, ()):
                meter.charge(event.tokens)
        elif isinstance(event, Finished):
            self._new.pop(event.task, None)
            self._meters_of.pop(event.task, None)
            if event.task not in self._told:
                return
            self._told.discard(event.task)
        self.inner.observe(event, now_s)

    def decide(self, view: View, now_s: float) -> Plan:
        """Let the policy decide on what is allowed now."""
        tasks = view.by_id()
        free = self._meet(tasks)
        self._meters.fill(now_s)
        hidden, refused = self._sort_out(tasks)
        unseen = hidden.keys() | {task.id for task, _ in refused}
        self._tell([*free, *self._meters_of], unseen, tasks, now_s)
        plan = self.inner.decide(_without(view, unseen), now_s)
        _strike(plan, unseen)
        plan.refuse.extend((task.id, error) for task, error in refused)
        plan.patient = plan.patient or bool(hidden)
        if self._meters_of:
            plan.repeat = 0  # rates are looked at in every step
        plan.waits |= {number: "its rate" if wait_s else "its cap of calls" for number, wait_s in hidden.items()}
        if view.can_swap:
            long = [tasks[number] for number, wait_s in hidden.items() if wait_s > _LONG_S]
            plan.swap_out.extend(task.id for task in long if task.residency is Residency.RESIDENT)
        return plan

    def _meet(self, tasks: Mapping[int, Task]) -> list[int]:
        """Look newcomers up; gives those that no limit concerns."""
        free: list[int] = []
        for number in [number for number in self._new if number in tasks]:
            del self._new[number]
            meters = self._meters.of(tasks[number])
            if meters:
                self._meters_of[number] = meters
            else:
                free.append(number)
        return free

    def _tell(self, numbers: Sequence[int], unseen: set[int], tasks: Mapping[int, Task], now_s: float) -> None:
        """Have calls arrive that may be served now, and leave that may not any longer."""
        for number in numbers:
            task = tasks.get(number)
            if task is None:
                continue
            if number not in unseen and number not in self._told:
                self._told.add(number)
                self.inner.observe(Arrived(number, task.program, task), now_s)
            elif number in unseen and number in self._told and task.residency is Residency.QUEUED:
                self._told.discard(number)
                self.inner.observe(Finished(number, task.program), now_s)

    def _sort_out(self, tasks: Mapping[int, Task]) -> tuple[dict[int, float], list[tuple[Task, BudgetExceeded]]]:
        """Calls to hide with the seconds they wait for a rate, and calls to refuse."""
        hidden: dict[int, float] = {}
        refused: list[tuple[Task, BudgetExceeded]] = []
        on: dict[_Meter, int] = {}
        limited = [(tasks[number], meters) for number, meters in self._meters_of.items() if number in tasks]
        # Those on the model have their places; the others come in the order of their arrival.
        for task, meters in sorted(limited, key=lambda pair: pair[0].residency is Residency.QUEUED):
            error = next((error for meter in meters if (error := meter.refusal(task)) is not None), None)
            if error is not None:
                refused.append((task, error))
                continue
            wait_s = max(meter.wait_s() for meter in meters)
            full = any(meter.limit.calls is not None and on.get(meter, 0) >= meter.limit.calls for meter in meters)
            if wait_s or full:
                hidden[task.id] = wait_s
            if not full and not (wait_s and task.residency is Residency.QUEUED):
                for meter in meters:
                    on[meter] = on.get(meter, 0) + 1
        return hidden, refused


def _strike(plan: Plan, unseen: set[int]) -> None:
    """A policy may remember calls from before they were hidden."""
    if unseen:
        plan.run = [(number, tokens) for number, tokens in plan.run if number not in unseen]
        for moved in (plan.admit, plan.swap_in, plan.swap_out):
            moved[:] = [number for number in moved if number not in unseen]


def _without(view: View, hidden: set[int]) -> View:
    if not hidden:
        return view
    tasks = [task for task in view.tasks if task.id not in hidden]
    placed = [task for task in view.active() if task.id not in hidden]
    return replace(view, tasks=tasks, placed=placed, index={task.id: task for task in tasks})
