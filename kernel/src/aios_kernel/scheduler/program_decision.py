"""One decision of the program policy: a plan from what the policy knows and what it sees."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from aios_kernel.scheduler.program_queue import CLASSES
from aios_kernel.scheduler.program_step import fill, urgency
from aios_kernel.scheduler.protocol import Parked, Plan, Residency, Task, View

if TYPE_CHECKING:
    from aios_kernel.scheduler.program import ProgramPolicy

_RESIDENT, _QUEUED, _SWAPPED = Residency.RESIDENT, Residency.QUEUED, Residency.SWAPPED
_DEARER = 4
"""How much more room is kept for growth where contexts swap: the device is busier, and computing anew dearer."""
_ALWAYS = -1.0
"""Of `_room`: whatever a paused program's expected rest."""


class Decision:
    """One plan in the making. Counts are in tokens.

    Args:
        policy: what is known.
        view: what is seen.
        now_s: the time.
    """

    def __init__(self, policy: ProgramPolicy, view: View, now_s: float) -> None:
        self._plan = Plan()
        self._policy, self._view, self._now_s = policy, view, now_s
        self._knobs = policy.knobs
        self._margin = min(self._knobs.margin, view.kv_total // 64)
        self._host = view.host_free
        self._parked = {parked.program: parked for parked in view.parked}
        active = view.active()
        self._runs = [task for task in active if task.residency is _RESIDENT]
        self._preempted = [task for task in active if task.residency is _SWAPPED]
        self._busy = {task.program for task in active}
        self._hot: list[Task] = []
        self._idle: list[tuple[int, float, Parked]] | None = None
        block, promised, self._pending = view.block_size, 0, 0
        for task in self._runs:  # the hot loop: no calls in it
            policy.waiting.remove(task.id)
            if task.generated > policy.longest:
                policy.longest = task.generated
            length, pending = task.length, task.pending
            promised += -(-length // block) * block + (pending - length) // block * block
            self._pending += pending
        # Kept free for one call to end in, so that calls that decode never block each other for good.
        self._reserve = min(2 * policy.longest, view.kv_total // 16) // view.block_size * view.block_size
        self._free = view.kv_free - promised - len(self._runs) * self._margin - self._reserve
        self._best = policy.waiting.best_class if self._knobs.preempt else len(CLASSES)
        self._find_hot()

    def make(self) -> Plan:
        """Running calls keep their room; then who is due, who comes back, who is warm, and who is new."""
        if self._free < 0 and not self._room(0, _ALWAYS) and self._view.kv_free < self._reserve:
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
        waiting.sort(key=_class)
        if not waiting or self._plan.fetch or self._plan.swap_in:
            return
        kept = sum(self._blocks(parked.length) for *_, parked in self._ranked_idle())
        if waiting[0] not in self._hot and self._expired() < kept and self._is_awaited():
            self._plan.patient = True
            return
        self._free += self._reserve
        self._margin = 0
        while not self._bring(waiting[0], _ALWAYS) and self._give_way(waiting[0]):
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

    # --- who gives way ----------------------------------------------------------------------------------------------

    def _room(self, need: int, hold: float, task: Task | None = None) -> bool:
        """Make room out of contexts of paused programs: worse classes first, of each those expected back last.

        Args:
            need: tokens.
            hold: a context stays if its expected rest is less than so many times what bringing it back takes.
            task: for whom. A context of a worse class does not stay at all, one of a better class for its whole time.
        """
        if need <= self._free:
            return True
        mine = CLASSES[task.priority] if task is not None else 0
        victims: list[Parked] = []
        gain, host = 0, self._host
        for place, rest, parked in reversed(self._ranked_idle()):
            stowable = self._knobs.swap_speed > 1 and host >= parked.length
            back_s = self._policy.recompute_s(parked.length) / (self._knobs.swap_speed if stowable else 1.0)
            if rest < self._holds(hold, place - mine) * back_s:
                continue
            host -= parked.length if stowable else 0
            gain += self._blocks(parked.length)
            victims.append(parked)
            if self._free + gain >= need:
                self._give_all_up(victims)
                return True
        return False

    def _holds(self, hold: float, below: int) -> float:
        """`hold` for a context whose class is so many places below that of who needs the room."""
        if hold < 0 or not below or not self._knobs.preempt:
            return hold
        return _ALWAYS if below > 0 else max(hold, self._knobs.hold)

    def _preempt(self, need: int, task: Task) -> bool:
        """Make room out of everything of worse classes: contexts of paused programs go, running calls are saved."""
        if need > self._free + self._inferior(task):
            return False
        paused = [parked for place, _, parked in self._ranked_idle() if place > CLASSES[task.priority]]
        short = need - self._free - sum(self._blocks(parked.length) for parked in paused)
        saved: list[Task] = []
        for run in self._worse(task):
            if short > 0 and run.length - run.pending <= self._host:
                saved.append(run)
                self._host -= run.length - run.pending
                short -= self._whole(run)
        if short > 0:
            self._host += sum(run.length - run.pending for run in saved)
            return False
        for run in saved:
            self._plan.swap_out.append(run.id)
            self._runs.remove(run)
            self._pending -= run.pending
            self._free += self._whole(run)
        while paused and self._free < need:
            self._give_all_up([paused.pop()])
        return True

    def _inferior(self, task: Task) -> int:
        """Tokens that calls and contexts of worse classes have in the pool."""
        if not self._knobs.preempt:
            return 0
        mine = CLASSES[task.priority]
        paused = sum(self._blocks(parked.length) for place, _, parked in self._ranked_idle() if place > mine)
        return paused + sum(self._whole(run) for run in self._worse(task))

    def _worse(self, task: Task) -> list[Task]:
        """Running calls of worse classes that can be saved, in the order to do so: the worst class, then the newest."""
        if not self._view.can_swap:
            return []
        mine, plan = CLASSES[task.priority], self._plan
        worse = [run for run in reversed(self._runs) if CLASSES[run.priority] > mine and run.id not in plan.admit]
        return sorted(worse, key=_class, reverse=True)

    def _expired(self) -> int:
        """Tokens of contexts that have been kept long enough."""
        hold, back_s = self._knobs.hold, self._policy.recompute_s
        return sum(self._blocks(p.length) for _, rest, p in self._ranked_idle() if rest >= hold * back_s(p.length))

    def _ranked_idle(self) -> list[tuple[int, float, Parked]]:
        """Contexts in the pool whose programs pause, with class and expected rest; the first to go at the end."""
        if self._idle is None:
            self._idle = [
                (CLASSES[parked.priority], self._policy.rest_s(parked, self._now_s), parked)
                for parked in self._parked.values()
                if parked.residency is _RESIDENT and parked.program not in self._busy
            ]
            self._idle.sort(key=_place)
        return self._idle

    def _claim(self, need: int, task: Task) -> bool:
        """For a call that is due: programs that have been in for long give way, once they have no call running."""
        policy = self._policy
        paused = [parked for *_, parked in self._ranked_idle() if policy.had_turn(parked.program, self._now_s)]
        later = [
            each
            for each in self._hot
            if each.id not in self._plan.admit and each.arrived_s > task.arrived_s and each.program in self._parked
            and policy.had_turn(each.program, self._now_s)
        ]  # fmt: skip
        back = [self._parked[each.program] for each in later]
        if self._free + sum(self._blocks(parked.length) for parked in (*paused, *back)) < need:
            return False
        gone: set[str] = set()
        for parked in (*reversed(paused), *reversed(back)):
            if self._free < need:
                self._give_up(parked)
                gone.add(parked.program)
        self._idle = [each for each in self._ranked_idle() if each[2].program not in gone]
        self._hot = [each for each in self._hot if each.program not in gone]
        return True

    def _take_back(self) -> None:
        """Running calls have outgrown all that was kept for them: returned programs give way too, the newest first."""
        idle = self._ranked_idle()
        while idle and self._free < 0:
            self._give_up(idle.pop()[2])
        while self._hot and self._free < 0:
            task = self._hot.pop()
            self._give_up(self._parked[task.program])

    def _give_all_up(self, victims: list[Parked]) -> None:
        """Some of the paused ones."""
        gone = {parked.program for parked in victims}
        self._idle = [each for each in self._ranked_idle() if each[2].program not in gone]
        for parked in victims:
            self._give_up(parked)

    def _give_up(self, parked: Parked) -> None:
        """Stow a context, or drop it when host memory is full."""
        self._free += self._blocks(parked.length)
        self._busy.add(parked.program)  # it does not come back in the same plan
        del self._parked[parked.program]
        if self._knobs.swap_speed > 1 and self._host >= parked.length:
            self._host -= parked.length
            self._plan.stow.append(parked.program)
        else:
            self._plan.drop.append(parked.program)

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

    def _whole(self, task: Task) -> int:
        return self._blocks(task.length) + self._margin

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._view.block_size) * self._view.block_size


def _place(idle: tuple[int, float, Parked]) -> tuple[int, float]:
    return idle[:2]


def _class(task: Task) -> int:
    return CLASSES[task.priority]


def _arrival(task: Task) -> tuple[int, float]:
    return (CLASSES[task.priority], task.arrived_s)
