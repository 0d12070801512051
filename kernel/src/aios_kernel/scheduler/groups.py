"""A policy for each agent group; the groups share the engine by weight, and each orders its own calls.

Each step's tokens and places are divided among the groups that have something to do, in proportion to their weights;
what one leaves over goes on to the next, the one that has had least so far coming last, so that nothing is wasted. When
the pool is full, the group that holds most beyond its share gives a parked context, or else its newest one, up to one
that is below its own. What calls of a group leave parked is its own policy's to decide on; it is dropped at once where
that policy parks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from aios_kernel.scheduler.protocol import (
    Arrived,
    Computed,
    Event,
    Finished,
    Parked,
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
    parked: list[Parked] = field(default_factory=list[Parked])
    """What its calls have left, as of this decision."""

    @property
    def parks(self) -> bool:
        return getattr(self.policy, "parks", False)


class Groups:
    """Policies of groups by name; all other groups together make one more, of weight 1."""

    def __init__(self, rest: Policy, members: Mapping[str, tuple[Policy, float]]) -> None:
        self.name = rest.name
        self._groups = {name: _Group(policy, weight) for name, (policy, weight) in members.items()}
        self._groups[_REST] = _Group(rest, 1.0)
        self.parks = any(group.parks for group in self._groups.values())
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
        tasks, plan = view.by_id(), Plan()
        self._meet(tasks, now_s)
        self._sort_out(view.parked, plan)
        busy = [group for group in self._groups.values() if group.calls or group.parked]
        busy.sort(key=lambda group: -group.attained)
        rows = [[tasks[number] for number in group.calls if number in tasks] for group in busy]
        weight = sum(group.weight for group in busy)
        wants = [min(view.max_step_tokens, sum(task.pending for task in row)) for row in rows]
        left = view
        for number, (group, row) in enumerate(zip(busy, rows, strict=True)):
            others = sum(wants[number + 1 :])
            part = group.weight / weight if weight else 1.0
            share = max(1, int(left.max_step_tokens * part), left.max_step_tokens - others)
            places = max(1, int(left.max_batch * part), left.max_batch - sum(len(r) for r in rows[number + 1 :]))
            weight -= group.weight
            if left.max_step_tokens < 1 or left.max_batch < 1:
                break
            promised = sum(_promised(task, view, plan) for n, r in enumerate(rows) if n != number for task in r)
            seen = replace(
                left,
                max_step_tokens=min(share, left.max_step_tokens),
                max_batch=min(places, left.max_batch),
                kv_free=max(0, left.kv_free - promised),
            )
            left = self._ask(group, row, seen, left, plan, now_s)
        self._reclaim(busy, rows, view, left.kv_free, plan)
        return plan

    def _sort_out(self, parked: Sequence[Parked], plan: Plan) -> None:
        """Give every group what it has parked; what a policy that parks nothing has left is dropped."""
        for group in self._groups.values():
            group.parked = []
        for row in parked:
            group = self._groups.get(row.group) or self._groups[_REST]
            if group.parks:
                group.parked.append(row)
            else:
                plan.drop.append(row.program)

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
        seen = replace(view, tasks=row, placed=placed, index=tasks, parked=group.parked)
        theirs = group.policy.decide(seen, now_s)
        for name in ("swap_out", "swap_in", "admit", "run", "stow", "fetch", "drop", "refuse"):
            getattr(plan, name).extend(getattr(theirs, name))
        plan.patient = plan.patient or theirs.patient
        free = left.kv_free + sum(view.kv_held(tasks[number]) for number in theirs.swap_out)
        run = dict(theirs.run)
        free -= sum(view.kv_need(tasks[number], tokens) for number, tokens in run.items())
        # A newcomer keeps the room of its whole prompt.
        came = [tasks[number] for number in (*theirs.admit, *theirs.swap_in)]
        free -= sum(view.kv_need(task, task.pending) for task in came)
        free += sum(view.kv_need(task, run[task.id]) for task in came if task.id in run)  # counted above
        lengths = {parked.program: parked.length for parked in group.parked}
        free -= sum(lengths[program] for program in theirs.fetch if program in lengths)
        return replace(
            left,
            kv_free=max(0, free),
            max_step_tokens=left.max_step_tokens - sum(run.values()),
            max_batch=left.max_batch - len(run),
            host_free=max(0, left.host_free - sum(lengths.get(program, 0) for program in theirs.stow)),
        )

    def _reclaim(
        self, busy: Sequence[_Group], rows: Sequence[Sequence[Task]], view: View, free: int, plan: Plan
    ) -> None:
        """Take a context from the group that is furthest above its share of the pool, for one below that waits.

        What is parked is touched only where memory, of which `free` tokens are left, is what they wait for.
        """
        if len(busy) < 2:
            return
        weight = sum(group.weight for group in busy)
        moving = {*plan.admit, *plan.swap_in, *plan.swap_out}
        residents = [[t for t in row if t.residency is Residency.RESIDENT and t.id not in moving] for row in rows]
        parked = [self._idle(group, view, plan) for group in busy]
        over = [
            sum(map(view.kv_held, kept)) + sum(row.length for row in idle) - view.kv_total * group.weight / weight
            for group, kept, idle in zip(busy, residents, parked, strict=True)
        ]
        waits = [_first_outside(row, moving) for row in rows]
        hungry = {number: task for number, task in enumerate(waits) if task is not None and over[number] < 0}
        if not hungry:
            return
        short = any(view.kv_need(task, task.pending) > free for task in hungry.values())
        most = max(range(len(busy)), key=over.__getitem__)
        if over[most] > 0:
            if short and parked[most]:
                _give_up(parked[most][0], view, plan)
            elif view.can_swap and len(residents[most]) > 1:
                _push_out(residents[most][-1], plan)
        elif short and any(parked) and any(not residents[number] for number in hungry):
            # All are within their shares, and one has nothing in the pool: it is not to wait for what only lies there.
            _give_up(min((idle[0] for idle in parked if idle), key=lambda row: row.since_s), view, plan)

    def _idle(self, group: _Group, view: View, plan: Plan) -> list[Parked]:
        """What a group has parked in the pool and keeps there, the oldest first."""
        tasks = view.by_id()
        gone = {*plan.stow, *plan.drop, *(tasks[number].program for number in plan.admit)}
        return [row for row in group.parked if row.residency is Residency.RESIDENT and row.program not in gone]


def _promised(task: Task, view: View, plan: Plan) -> int:
    """KV that a call in the pool still needs for what it has begun, beyond what the plan takes for it already."""
    if task.residency is not Residency.RESIDENT or task.id in plan.swap_out:
        return 0
    taken = next((tokens for number, tokens in plan.run if number == task.id), 0)
    return view.kv_need(task, task.pending) - view.kv_need(task, taken)


def _first_outside(row: Sequence[Task], moving: set[int]) -> Task | None:
    """The oldest call of a group that has no place in the pool and gets none."""
    return next((t for t in row if t.residency is not Residency.RESIDENT and t.id not in moving), None)


def _give_up(parked: Parked, view: View, plan: Plan) -> None:
    """Out of the pool, to where there is room for it."""
    (plan.stow if parked.length <= view.host_free else plan.drop).append(parked.program)


def _push_out(task: Task, plan: Plan) -> None:
    plan.swap_out.append(task.id)
    plan.run = [(number, tokens) for number, tokens in plan.run if number != task.id]
