"""A policy for each agent group; the groups share the engine by weight, and each orders its own calls.

Each step's tokens and places are divided among the groups that have something to do, in proportion to their weights;
what one leaves over goes on to the next, the one that has had least so far coming last, so that nothing is wasted. When
the pool is full, the group that holds most beyond its share gives its newest context up to one that is below its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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

_REST = ""
"""The groups that have no policy of their own."""


@dataclass(slots=True, eq=False)
class _Group:
    policy: Policy
    weight: float
    attained: float = 0.0
    """Tokens computed for it, by weight."""
    calls: dict[int, None] = field(default_factory=dict[int, None])


class Groups:
    """Policies of groups by name; all other groups together make one more, of weight 1."""

    parks = False

    def __init__(self, rest: Policy, members: Mapping[str, tuple[Policy, float]]) -> None:
        self.name = rest.name
        self._groups = {name: _Group(policy, weight) for name, (policy, weight) in members.items()}
        self._groups[_REST] = _Group(rest, 1.0)
        self._of: dict[int, _Group] = {}
        self._new: dict[int, Arrived] = {}

    def observe(self, event: Event, now_s: float) -> None:
        """Hand events of a call to its group, all others to every group."""
        if isinstance(event, Arrived):
            self._new[event.task] = event
            return
        if not isinstance(event, Computed | Finished):
            for group in self._groups.values():
                group.policy.observe(event, now_s)
            return
        group = self._of.get(event.task)
        if group is None:
            self._new.pop(event.task, None)
            return
        if isinstance(event, Computed):
            group.attained += event.tokens / group.weight
        else:
            del self._of[event.task], group.calls[event.task]
        group.policy.observe(event, now_s)

    def decide(self, view: View, now_s: float) -> Plan:
        """Ask every group that has something to do, the one that has had most first."""
        tasks = view.by_id()
        self._meet(tasks, now_s)
        busy = sorted((group for group in self._groups.values() if group.calls), key=lambda group: -group.attained)
        rows = [[tasks[number] for number in group.calls if number in tasks] for group in busy]
        weight = sum(group.weight for group in busy)
        wants = [min(view.max_step_tokens, sum(task.pending for task in row)) for row in rows]
        plan, left = Plan(), view
        for number, (group, row) in enumerate(zip(busy, rows, strict=True)):
            others = sum(wants[number + 1 :])
            part = group.weight / weight if weight else 1.0
            share = max(1, int(left.max_step_tokens * part), left.max_step_tokens - others)
            places = max(1, int(left.max_batch * part), left.max_batch - sum(len(r) for r in rows[number + 1 :]))
            weight -= group.weight
            if left.max_step_tokens < 1 or left.max_batch < 1:
                break
            limits = (min(share, left.max_step_tokens), min(places, left.max_batch))
            left = self._ask(
                group, row, replace(left, max_step_tokens=limits[0], max_batch=limits[1]), left, plan, now_s
            )
        self._reclaim(busy, rows, view, plan)
        return plan

    def _meet(self, tasks: Mapping[int, Task], now_s: float) -> None:
        for event in [event for number, event in self._new.items() if number in tasks]:
            del self._new[event.task]
            group = self._groups.get(tasks[event.task].group) or self._groups[_REST]
            if not group.calls:  # an idle time is no credit
                least = min((g.attained for g in self._groups.values() if g.calls), default=group.attained)
                group.attained = max(group.attained, least)
            self._of[event.task] = group
            group.calls[event.task] = None
            group.policy.observe(event, now_s)

    def _ask(self, group: _Group, row: Sequence[Task], view: View, left: View, plan: Plan, now_s: float) -> View:
        """Add a group's plan; gives what is left for the others."""
        tasks = {task.id: task for task in row}
        placed = [task for task in row if task.residency is not Residency.QUEUED]
        theirs = group.policy.decide(replace(view, tasks=row, placed=placed, index=tasks), now_s)
        for name in ("swap_out", "swap_in", "admit", "run", "refuse"):
            getattr(plan, name).extend(getattr(theirs, name))
        plan.patient = plan.patient or theirs.patient
        free = left.kv_free + sum(view.kv_held(tasks[number]) for number in theirs.swap_out)
        run = dict(theirs.run)
        free -= sum(view.kv_need(tasks[number], tokens) for number, tokens in run.items())
        # A newcomer keeps the room of its whole prompt.
        came = [tasks[number] for number in (*theirs.admit, *theirs.swap_in)]
        free -= sum(view.kv_need(task, task.pending) - view.kv_need(task, run.get(task.id, 0)) for task in came)
        used = sum(run.values())
        return replace(
            left, kv_free=max(0, free), max_step_tokens=left.max_step_tokens - used, max_batch=left.max_batch - len(run)
        )

    def _reclaim(self, busy: Sequence[_Group], rows: Sequence[Sequence[Task]], view: View, plan: Plan) -> None:
        """Take a context from the group that is furthest above its share of the pool, for one below that waits."""
        if not view.can_swap or len(busy) < 2:
            return
        weight = sum(group.weight for group in busy)
        moving = {*plan.admit, *plan.swap_in, *plan.swap_out}
        residents = [[t for t in row if t.residency is Residency.RESIDENT and t.id not in moving] for row in rows]
        over = [
            sum(view.kv_held(task) for task in kept) - view.kv_total * group.weight / weight
            for group, kept in zip(busy, residents, strict=True)
        ]
        waits = [any(t.residency is not Residency.RESIDENT and t.id not in moving for t in row) for row in rows]
        most = max(range(len(busy)), key=over.__getitem__)
        needy = any(wait and spare < 0 for wait, spare in zip(waits, over, strict=True))
        if needy and over[most] > 0 and len(residents[most]) > 1:
            newest = residents[most][-1]
            plan.swap_out.append(newest.id)
            plan.run = [(number, tokens) for number, tokens in plan.run if number != newest.id]
