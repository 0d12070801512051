"""Whose contexts give way in a decision of the program policy: the books of the pool, and how room is made in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aios_kernel.scheduler.program_queue import CLASSES
from aios_kernel.scheduler.protocol import Parked, Plan, Residency, Task, View

if TYPE_CHECKING:
    from aios_kernel.scheduler.program import ProgramPolicy

ALWAYS = -1.0
"""Of `_room`: whatever a paused program's expected rest."""


class Room:
    """The pool as one plan in the making leaves it. Counts are in tokens.

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
        self._runs = [task for task in active if task.residency is Residency.RESIDENT]
        self._preempted = [task for task in active if task.residency is Residency.SWAPPED]
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
        return ALWAYS if below > 0 else max(hold, self._knobs.hold)

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
        return sorted(worse, key=class_of, reverse=True)

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
                if parked.residency is Residency.RESIDENT and parked.program not in self._busy
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

    def _whole(self, task: Task) -> int:
        return self._blocks(task.length) + self._margin

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._view.block_size) * self._view.block_size


def _place(idle: tuple[int, float, Parked]) -> tuple[int, float]:
    return idle[:2]


def class_of(task: Task) -> int:
    """Its priority class, the best one 0."""
    return CLASSES[task.priority]
