"""Whose contexts give way in a decision of the program policy: the books of the pool, and how room is made in it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from aios_kernel.scheduler.program_queue import CLASSES, WORST_FIRST
from aios_kernel.scheduler.protocol import Parked, Plan, Residency, Task, View

if TYPE_CHECKING:
    from aios_kernel.scheduler.program import ProgramPolicy

ALWAYS = -1.0
"""Of `_room`: whatever a paused program's expected rest."""
_LOOKS = 128
"""Contexts of a class that a search for room passes over before it ends: thousands may be parked."""
CLAIMED = 1024
"""Likewise of programs that have been in for long."""


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
        self._kept = policy.kept
        active = view.active()
        self._runs = [task for task in active if task.residency is Residency.RESIDENT]
        self._preempted = [task for task in active if task.residency is Residency.SWAPPED]
        self._busy = {task.program for task in active}
        self._refused: dict[tuple[float, int], int] = {}
        waiting, block, promised, self._pending = policy.waiting.numbers, view.block_size, 0, 0
        for task in self._runs:  # the hot loop: no calls in it
            if task.id in waiting:
                policy.stop_waiting(task.id)
            if task.generated > policy.longest:
                policy.longest = task.generated
            length, pending = task.length, task.pending
            promised += -(-length // block) * block + (pending - length) // block * block
            self._pending += pending
        # Kept free for one call to end in, so that calls that decode never block each other for good.
        self._reserve = min(2 * policy.longest, view.kv_total // 16) // view.block_size * view.block_size
        self._free = view.kv_free - promised - len(self._runs) * self._margin - self._reserve
        for program in self._kept.update(view, self._busy):
            policy.meet_parked(program, now_s)

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
        short = need - self._free
        if short >= self._refused.get((hold, mine), short + 1):
            return False  # less has been refused in this decision, which only takes room
        victims = self._victims(short, hold, mine)
        if victims is None:
            self._refused[hold, mine] = short
            return False
        for parked in victims:
            self._give_up(parked)
        return True

    def _victims(self, short: int, hold: float, mine: int) -> list[Parked] | None:
        """See `_room`; None when there are not enough of them, among those looked at."""
        victims: list[Parked] = []
        gain, host = 0, self._host
        for place in WORST_FIRST:
            held, passed = self._holds(hold, place - mine), 0
            for rest, parked in self._kept.idle(place, self._now_s):
                stowable = self._knobs.swap_speed > 1 and host >= parked.length
                back_s = self._policy.recompute_s(parked.length) / (self._knobs.swap_speed if stowable else 1.0)
                if rest < held * back_s:
                    passed += 1
                    if passed == _LOOKS:
                        break
                    continue
                host -= parked.length if stowable else 0
                gain += self._blocks(parked.length)
                victims.append(parked)
                if gain >= short:
                    return victims
        return None

    def _holds(self, hold: float, below: int) -> float:
        """`hold` for a context whose class is so many places below that of who needs the room."""
        if hold < 0 or not below or not self._knobs.preempt:
            return hold
        return ALWAYS if below > 0 else max(hold, self._knobs.hold)

    def _preempt(self, need: int, task: Task) -> bool:
        """Make room out of everything of worse classes: contexts of paused programs go, running calls are saved."""
        if need > self._free + self._inferior(task):
            return False
        mine = CLASSES[task.priority]
        short = need - self._free - self._kept.held(mine)
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
        while self._free < need and (parked := self._kept.first_to_go(self._now_s, mine)) is not None:
            self._give_up(parked)
        return True

    def _inferior(self, task: Task) -> int:
        """Tokens that calls and contexts of worse classes have in the pool."""
        if not self._knobs.preempt:
            return 0
        return self._kept.held(CLASSES[task.priority]) + sum(self._whole(run) for run in self._worse(task))

    def _worse(self, task: Task) -> list[Task]:
        """Running calls of worse classes that can be saved, in the order to do so: the worst class, then the newest."""
        mine, plan = CLASSES[task.priority], self._plan
        if not self._view.can_swap or mine == len(CLASSES) - 1:
            return []
        worse = [run for run in reversed(self._runs) if CLASSES[run.priority] > mine and run.id not in plan.admit]
        return sorted(worse, key=class_of, reverse=True)

    def _has_expired(self, short: float) -> bool:
        """Whether contexts that have been kept long enough hold so many tokens, among those looked at."""
        hold = self._knobs.hold
        for place in WORST_FIRST:
            passed = 0
            for rest, parked in self._kept.idle(place, self._now_s):
                if rest >= hold * self._policy.recompute_s(parked.length):
                    short -= self._blocks(parked.length)
                    if short <= 0:
                        return True
                else:
                    passed += 1
                    if passed == _LOOKS:
                        break
        return False

    def _claim(self, need: int, task: Task) -> bool:
        """For a call that is due: programs that have been in for long give way, once they have no call running."""
        kept, paused, back = self._kept, list[Parked](), list[Parked]()
        for program in islice(self._policy.had_turns(self._now_s), CLAIMED):
            parked = kept.get(program)
            if parked is None:
                continue
            if kept.is_idle(program):
                paused.append(parked)
            elif program in kept.hot and self._is_later(program, task):
                back.append(parked)
        if self._free + sum(self._blocks(parked.length) for parked in (*paused, *back)) < need:
            return False
        paused.sort(key=lambda parked: kept.order(parked, self._now_s), reverse=True)
        back.sort(key=lambda parked: kept.number(parked.program), reverse=True)
        for parked in (*paused, *back):
            if self._free < need:
                self._give_up(parked)
        return True

    def _is_later(self, program: str, task: Task) -> bool:
        """Whether a program's returned call came after another, and is not admitted in this plan."""
        each = self._policy.waiting.of(program)
        return each is not None and each.id not in self._plan.admit and each.arrived_s > task.arrived_s

    def _take_back(self) -> None:
        """Running calls have outgrown all that was kept for them: returned programs give way too, the newest first."""
        while self._free < 0 and (parked := self._kept.first_to_go(self._now_s)) is not None:
            self._give_up(parked)
        while self._free < 0 and (program := self._kept.returned.last()) is not None:
            self._give_up(self._kept.rows[program])

    def _give_up(self, parked: Parked) -> None:
        """Stow a context, or drop it when host memory is full."""
        self._free += self._blocks(parked.length)
        self._busy.add(parked.program)  # it does not come back in the same plan
        self._kept.lose(parked.program)
        if self._knobs.swap_speed > 1 and self._host >= parked.length:
            self._host -= parked.length
            self._plan.stow.append(parked.program)
        else:
            self._plan.drop.append(parked.program)

    def _whole(self, task: Task) -> int:
        return self._blocks(task.length) + self._margin

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._view.block_size) * self._view.block_size


def class_of(task: Task) -> int:
    """Its priority class, the best one 0."""
    return CLASSES[task.priority]
