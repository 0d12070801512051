"""One decision of the program policy: a plan from what the policy knows and what it sees."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from aios_kernel.scheduler.program_queue import CLASSES
from aios_kernel.scheduler.program_room import ALWAYS, Room, class_of
from aios_kernel.scheduler.program_step import fill, urgency
from aios_kernel.scheduler.protocol import Plan, Residency, Task, View

if TYPE_CHECKING:
    from aios_kernel.scheduler.program import ProgramPolicy

_RESIDENT, _SWAPPED = Residency.RESIDENT, Residency.SWAPPED
_DEARER = 4
"""How much more room is kept for growth where contexts swap: the device is busier, and computing anew dearer."""


class Decision(Room):
    """One plan in the making. Counts are in tokens.

    Args:
        policy: what is known.
        view: what is seen.
        now_s: the time.
    """

    def __init__(self, policy: ProgramPolicy, view: View, now_s: float) -> None:
        super().__init__(policy, view, now_s)
        self._best = policy.waiting.best_class if self._knobs.preempt else len(CLASSES)
        self._find_hot()

    def make(self) -> Plan:
        """Running calls keep their room; then who is due, who comes back, who is warm, and who is new."""
        if self._free < 0 and not self._room(0, ALWAYS) and self._view.kv_free < self._reserve:
            self._take_back()
        self._return()
        self._admit_warm()
        if self._admit_due():
            self._admit_new()
            self._prefetch()
        if not self._runs:
            self._start_one()
        self._plan.run = fill(self._view, self._runs, self._knobs.chunk, self._reserve)
        return self._plan

    def _find_hot(self) -> None:
        """Queued calls whose context is in the pool; one that shares nothing with it has no use for it."""
        seen = self._view.by_id() if self._view.parked else {}
        for parked in self._view.parked:
            waiting = self._policy.waiting.of(parked.program)
            if waiting is None or parked.residency is not _RESIDENT or waiting.id not in seen:
                continue
            task = seen[waiting.id]
            if task.pending < task.length:
                self._hot.append(task)
                self._busy.add(task.program)
            else:
                self._plan.drop.append(parked.program)
                self._free += self._blocks(parked.length)
                del self._parked[parked.program]

    # --- who comes in -----------------------------------------------------------------------------------------------

    def _admit_due(self) -> bool:
        """Calls that nobody may overtake, in order; False when one is left that does not fit yet."""
        for task in [*self._policy.waiting.due(self._now_s)]:
            if task.program not in self._busy and not self._bring(task, self._knobs.hold, claim=True):
                return False
        return True

    def _return(self) -> None:
        """Preempted calls, and those whose context is in the pool already: their programs are in."""
        for task in self._preempted:
            if not self._is_outranked(task) and self._room(self._whole(task), 0.0, task):
                self._plan.swap_in.append(task.id)
                self._free -= self._whole(task)
        for task in sorted(self._hot, key=urgency):
            if task.id not in self._plan.admit and not self._is_outranked(task):
                self._bring(task, 1.0)

    def _admit_warm(self) -> None:
        """Calls of programs whose context was stowed, best rank first: it is fetched, and they run when it is there."""
        found = [self._policy.waiting.of(name) for name, parked in self._parked.items() if parked.residency is _SWAPPED]
        warm = [task for task in found if task is not None and task.program not in self._busy]
        for task in sorted(warm, key=_arrival):
            if self._is_outranked(task) or not self._bring(task, 0.0):
                break

    def _admit_new(self) -> None:
        """Programs that are not in, while the working set with its growth fits; nobody overtakes the first one."""
        policy = self._policy
        growth = self._growth() if policy.waiting else 0.0
        share = self._knobs.grow * (_DEARER if self._view.can_swap else 1)
        for task in policy.waiting.ranked():
            parked = self._parked.get(task.program)
            if task.program in self._busy:
                self._join(task)
                continue
            if parked is not None and parked.residency is _SWAPPED:
                continue
            growth += max(0.0, policy.lives.final - task.length)
            crowded = self._crowded(self._whole(task) + share * growth, task)
            if self._has_backlog(task) or (crowded and (self._runs or self._parked)):
                break
            if not self._bring(task, self._knobs.hold):
                break

    def _join(self, task: Task) -> None:
        """A further call of a program that is in runs beside the others if there is room, and moves nobody out."""
        runs, need = self._runs, self._whole(task)
        if need > self._free or len(runs) >= self._view.max_batch or task.program in self._parked:
            return
        if task.id in self._plan.admit:  # it was due, or had its context in the pool
            return
        if not self._has_backlog(task) and any(run.program == task.program for run in runs):
            self._free -= need
            self._plan.admit.append(task.id)
            runs.append(task)

    def _crowded(self, need: float, task: Task) -> bool:
        """Whether the pool and host memory, with what a newcomer may take from others, are short of so many tokens."""
        room = self._free + self._host
        return need > room and need > room + self._expired() and need > room + self._inferior(task)

    def _prefetch(self) -> None:
        """With room to spare: stowed contexts of programs that are expected back before they could be fetched."""
        if not self._knobs.prefetch:
            return
        for name, parked in self._parked.items():
            if parked.residency is _SWAPPED and name not in self._busy:
                lead = self._policy.recompute_s(parked.length) / max(1.0, self._knobs.swap_speed)
                need = self._blocks(parked.length) + self._margin
                if need <= self._free and self._policy.rest_s(parked, self._now_s) <= lead:
                    self._plan.fetch.append(name)
                    self._busy.add(name)
                    self._free -= need

    def _start_one(self) -> None:
        """Nothing runs: somebody must, unless contexts that are kept leave no room and will be needed soon."""
        queue = self._policy.waiting
        waiting = [*self._preempted, *self._hot, *islice(queue.due(self._now_s), 1), *islice(queue.ranked(), 1)]
        waiting.sort(key=class_of)
        if not waiting or self._plan.fetch or self._plan.swap_in:
            return
        kept = sum(self._blocks(parked.length) for *_, parked in self._ranked_idle())
        if waiting[0] not in self._hot and self._expired() < kept and self._is_awaited():
            self._plan.patient = True
            return
        self._free += self._reserve
        self._margin = 0
        while not self._bring(waiting[0], ALWAYS) and self._give_way(waiting[0]):
            pass

    def _is_awaited(self) -> bool:
        """Whether a program whose context is kept comes back by itself: not one that waits for a queued call."""
        queued = {task.family for task in self._policy.waiting.ranked()}
        return any(parked.family not in queued for *_, parked in self._ranked_idle())

    def _give_way(self, first: Task) -> bool:
        """Let the newest other call that has its context in the pool lose it: each holds what the others lack."""
        others = [task for task in self._hot if task is not first]
        if not others:
            return False
        self._hot.remove(others[-1])
        self._give_up(self._parked[others[-1].program])
        return True

    def _bring(self, task: Task, hold: float, *, claim: bool = False) -> bool:
        """Admit a call, or fetch what it goes on from, if room for it can be made; see `_room`."""
        parked = self._parked.get(task.program)
        here = parked is not None and parked.residency is _RESIDENT
        need = self._whole(task) - (self._blocks(parked.length) if parked is not None and here else 0)
        was_busy = task.program in self._busy
        self._busy.add(task.program)
        if not (self._room(need, hold, task) or self._preempt(need, task) or (claim and self._claim(need, task))):
            if not was_busy:
                self._busy.discard(task.program)
            return False
        self._free -= need
        if task.residency is _SWAPPED:
            self._plan.swap_in.append(task.id)
            return True
        if parked is not None and not here:
            self._plan.fetch.append(task.program)
        if parked is None or here or not self._runs:
            self._plan.admit.append(task.id)
            self._runs.append(task)
            self._pending += task.pending
        if parked is None:
            self._policy.come_in(task.program, self._now_s)
        return True

    # --- what is kept free ------------------------------------------------------------------------------------------

    def _growth(self) -> float:
        """How much longer the contexts of programs that are in will get, by how long those that ended were."""
        final = self._policy.lives.final
        if not final or not self._knobs.grow:
            return 0.0
        growth = sum(max(0.0, final - task.length) for task in self._runs)
        return growth + sum(max(0.0, final - p.length) for p in self._parked.values() if p.program not in self._busy)

    def _has_backlog(self, task: Task) -> bool:
        """Whether much prefill is under way before a newcomer's: that of its own class and better ones."""
        if self._pending <= self._knobs.backlog:
            return False
        mine = CLASSES[task.priority]
        return sum(run.pending for run in self._runs if CLASSES[run.priority] <= mine) > self._knobs.backlog

    def _is_outranked(self, task: Task) -> bool:
        """Whether a call of a better class waits, so that this one must not take up room."""
        return CLASSES[task.priority] > self._best


def _arrival(task: Task) -> tuple[int, float]:
    return (CLASSES[task.priority], task.arrived_s)
