"""Carrying out a plan's moves: contexts out of the pool and into it, as far as there is room."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from aios_kernel.context.manager import ContextManager, Held
from aios_kernel.engine.protocol import KvExhausted
from aios_kernel.scheduler.protocol import Plan, Residency
from aios_kernel.scheduler.roster import Roster, Update, engine_error

_log = logging.getLogger(__name__)


class Moves:
    """Carries out plans in the order that `protocol` says; what does not fit stays where it is.

    Attributes:
        tokens_cached: prompt tokens that admitted contexts found in the prefix cache.
    """

    def __init__(self, roster: Roster, contexts: ContextManager) -> None:
        self._roster = roster
        self._contexts = contexts
        self.tokens_cached = 0

    def carry_out(self, plan: Plan) -> bool:
        """Move what the plan says; gives whether anything moved."""
        parking = self._contexts.parking
        moved = _any(parking.drop, plan.drop)
        for task in plan.swap_out:
            held = self._roster.held.get(task)
            if held is not None and held.residency is Residency.RESIDENT and self._contexts.can_swap:
                self.swap_out(held)
                moved = True
        moved |= _any(parking.stow, plan.stow)
        moved |= _any(parking.fetch, plan.fetch)
        for task in plan.swap_in:
            moved |= self._brought(task, Residency.SWAPPED, self._contexts.swap_in)
        for task in plan.admit:
            moved |= self._brought(task, Residency.QUEUED, self._contexts.admit)
        return moved

    def swap_out(self, held: Held) -> None:
        """Take a context out of the pool; one that cannot be saved ends alone."""
        try:
            self._contexts.swap_out(held)
        except Exception as error:  # noqa: BLE001 - a context that cannot be saved ends alone
            _log.exception("a context could not be swapped out")
            self._roster.fail([held], engine_error(error))
        else:
            self._roster.note(Update(held.generation, preempted=True))

    def _brought(self, task: int, place: Residency, bring: Callable[[Held], bool]) -> bool:
        held = self._roster.held.get(task)
        if held is None or held.residency is not place:
            return False
        try:
            if not bring(held):
                return False  # it is on its way
        except KvExhausted:
            return False
        except Exception as error:  # noqa: BLE001 - a context that cannot be opened ends alone
            _log.exception("a context could not be brought in")
            self._roster.fail([held], engine_error(error))
            return True
        if place is Residency.QUEUED:
            self.tokens_cached += held.generation.cached
            self._roster.board.touch(task)
        else:
            self._roster.note(Update(held.generation, resumed=True))
        return True


def _any(move: Callable[[str], bool], programs: Iterable[str]) -> bool:
    """Make every move; whether one was made."""
    made = [move(program) for program in programs]
    return any(made)
