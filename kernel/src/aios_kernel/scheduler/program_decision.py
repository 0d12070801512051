"""One decision of the program policy: a plan from what the policy knows and what it sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

from aios_kernel.scheduler.program_queue import CLASSES, WORST_FIRST
from aios_kernel.scheduler.program_room import ALWAYS, CLAIMED, Room, class_of
from aios_kernel.scheduler.program_step import fill
from aios_kernel.scheduler.protocol import Parked, Plan, Residency, Task, View

if TYPE_CHECKING:
    from aios_kernel.scheduler.program import ProgramPolicy

_RESIDENT, _SWAPPED = Residency.RESIDENT, Residency.SWAPPED
_DEARER = 4
"""How much more room is kept for growth where contexts swap: the device is busier, and computing anew dearer."""
REPEAT = 15
"""Steps that a plan holds for when nothing is to be decided."""
_SOON_S = 1.0
_PASSED = 64
"""Calls or contexts that are passed over in one decision, as what is tried in vain."""


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

    def make(self) -> Plan:
        """Running calls keep their room; then who is due, who comes back, who is warm, and who is new."""
        self._drop_cold()
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
        if self._is_steady():
            self._plan.repeat = min(REPEAT, self._view.block_size - 1)  # no task takes more than a block until then
        return self._plan

    def _is_steady(self) -> bool:
        """Whether all that are in decode, with room to do so, nothing moves, and there is nobody else to decide on."""
        runs, plan = self._runs, self._plan
        if not runs or self._policy.waiting or self._preempted or plan.stow or plan.fetch or plan.drop:
            return False
        if len(plan.run) < len(runs) or self._view.kv_free - self._reserve < len(runs) * self._view.block_size:
            return False
        if not all(task.pending == 1 and task.generated for task in runs):
            return False
        soonest_s = next((rest_s for rest_s, _ in self._kept.away(self._now_s)), _SOON_S)
        return soonest_s >= _SOON_S  # else it may have to be fetched meanwhile

    def _drop_cold(self) -> None:
        """Queued calls that share nothing with what their programs have parked in the pool have no use for it."""
        for program in [*self._kept.cold]:
            self._plan.drop.append(program)
            self._free += self._blocks(self._kept.rows[program].length)
            self._kept.lose(program)

    # --- who comes in -----------------------------------------------------------------------------------------------

    def _admit_due(self) -> bool:
        """Calls that nobody may overtake, in order; False when one is left that does not fit yet."""
        passed = 0
        for task in self._policy.waiting.due(self._now_s):
            if not self._has_place(task) or passed > _PASSED:
                return False
            if self._is_in(task.program):
                passed += 1
            elif not self._bring(task, self._knobs.hold, claim=True):
                return False
        return True

    def _return(self) -> None:
        """Preempted calls, and those whose context is in the pool already: their programs are in."""
        for task in self._preempted:
            if not self._is_outranked(task) and self._room(self._whole(task), 0.0, task):
                self._plan.swap_in.append(task.id)
                self._free -= self._whole(task)
        failed = 0
        for task in self._hot(self._kept.hot):
            if not self._has_place(task) or failed > _PASSED:
                break
            if not self._is_outranked(task) and not self._bring(task, 1.0):
                failed += 1

    def _admit_warm(self) -> None:
        """Calls of programs whose context was stowed, best rank first: it is fetched, and they run when it is there."""
        brought: list[str] = []
        for program in self._kept.warm:
            task = self._policy.waiting.of(program)
            if task is None or self._is_outranked(task) or not self._bring(task, 0.0):
                break
            brought.append(program)
        for program in brought:
            self._kept.take(program)

    def _admit_new(self) -> None:
        """Programs that are not in, while the working set with its growth fits; nobody overtakes the first one."""
        policy = self._policy
        growth = self._growth() if policy.waiting else 0.0
        share = self._knobs.grow * (_DEARER if self._view.can_swap else 1)
        passed = 0
        for task in policy.waiting.ranked():
            if not self._has_place(task) or passed > _PASSED:
                break
            parked = self._kept.get(task.program)
            if self._is_in(task.program):
                self._join(task)
                passed += 1
                continue
            if parked is not None and parked.residency is _SWAPPED:
                passed += 1
                continue
            growth += max(0.0, policy.lives.final - task.length)
            crowded = self._crowded(self._whole(task) + share * growth, task)
            if self._has_backlog(task) or (crowded and (self._runs or not self._kept.is_empty)):
                break
            if not self._bring(task, self._knobs.hold):
                break

    def _join(self, task: Task) -> None:
        """A further call of a program that is in runs beside the others if there is room, and moves nobody out."""
        runs, need = self._runs, self._whole(task)
        if need > self._free or len(runs) >= self._view.max_batch or self._kept.get(task.program) is not None:
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
        return need > room and need > room + self._inferior(task) and not self._has_expired(need - room)

    def _prefetch(self) -> None:
        """With room to spare: stowed contexts of programs that are expected back before they could be fetched."""
        if not self._knobs.prefetch:
            return
        speed = max(1.0, self._knobs.swap_speed)
        longest_s = self._policy.recompute_s(self._view.kv_total) / speed
        soon: list[Parked] = []
        for rest, parked in islice(self._kept.away(self._now_s), _PASSED):
            if rest > longest_s:
                break
            if rest <= self._policy.recompute_s(parked.length) / speed and parked.program not in self._busy:
                soon.append(parked)
        for parked in sorted(soon, key=lambda parked: self._kept.number(parked.program)):
            need = self._blocks(parked.length) + self._margin
            if need <= self._free:
                self._plan.fetch.append(parked.program)
                self._busy.add(parked.program)
                self._kept.take(parked.program)
                self._free -= need

    def _start_one(self) -> None:
        """Nothing runs: somebody must, unless contexts that are kept leave no room and will be needed soon."""
        queue = self._policy.waiting
        hot = [*islice(self._hot(self._kept.returned), 1)]
        waiting = [*self._preempted, *hot, *islice(queue.due(self._now_s), 1), *islice(queue.ranked(), 1)]
        waiting.sort(key=class_of)
        if not waiting or self._plan.fetch or self._plan.swap_in:
            return
        if waiting[0] not in hot and self._is_worth_waiting():
            self._plan.patient = True
            return
        self._free += self._reserve
        self._margin = 0
        while not self._bring(waiting[0], ALWAYS) and self._give_way(waiting[0]):
            pass

    def _is_worth_waiting(self) -> bool:
        """Whether contexts are kept that will be needed soon, and a program comes back by itself.

        One whose family has a queued call does not: it waits for that.
        """
        hold, families = self._knobs.hold, self._policy.waiting.families
        soon = awaited = False
        idle = chain.from_iterable(self._kept.idle(place, self._now_s) for place in WORST_FIRST)
        for rest, parked in islice(idle, CLAIMED):
            soon = soon or rest < hold * self._policy.recompute_s(parked.length)
            awaited = awaited or parked.family not in families
            if soon and awaited:
                return True
        return False

    def _give_way(self, first: Task) -> bool:
        """Let the newest other call that has its context in the pool lose it: each holds what the others lack."""
        other = next((name for name in reversed(self._kept.returned) if name != first.program), None)
        if other is None:
            return False
        self._give_up(self._kept.rows[other])
        return True

    def _bring(self, task: Task, hold: float, *, claim: bool = False) -> bool:
        """Admit a call, or fetch what it goes on from, if room for it can be made; see `_room`."""
        parked = self._kept.get(task.program)
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
        return growth + self._kept.lengths.short_of(final)

    def _has_backlog(self, task: Task) -> bool:
        """Whether much prefill is under way before a newcomer's: that of its own class and better ones."""
        if self._pending <= self._knobs.backlog:
            return False
        mine = CLASSES[task.priority]
        return sum(run.pending for run in self._runs if CLASSES[run.priority] <= mine) > self._knobs.backlog

    def _has_place(self, task: Task) -> bool:
        """Whether fewer calls of its class and better ones are in than a step can take: more would only wait there."""
        runs, most = self._runs, self._view.max_batch
        return len(runs) < most or sum(CLASSES[run.priority] <= CLASSES[task.priority] for run in runs) < most

    def _is_in(self, program: str) -> bool:
        """Whether a program has calls in the pool, or a context that one goes on from, or what this plan has moved."""
        return program in self._busy or program in self._kept.hot

    def _hot(self, names: Iterable[str]) -> Iterator[Task]:
        """The calls of programs that go on from contexts in the pool."""
        tasks = self._view.by_id() if self._kept.hot else {}
        for name in names:
            task = self._policy.waiting.of(name)
            if task is not None and task.id in tasks:
                yield tasks[task.id]

    def _is_outranked(self, task: Task) -> bool:
        """Whether a call of a better class waits, so that this one must not take up room."""
        return CLASSES[task.priority] > self._best
