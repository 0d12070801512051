"""What the last calls of programs left behind, kept for their next ones: one context a program."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from aios_kernel.chat.generation import Order
from aios_kernel.context.held import Held
from aios_kernel.context.history import same_beginning
from aios_kernel.context.place import Place
from aios_kernel.context.residue import Residue
from aios_kernel.context.swap import SwapTiers
from aios_kernel.engine.protocol import Context, Engine, KvExhausted
from aios_kernel.scheduler.protocol import Parked, Residency
from aios_kernel.scheduler.rows import Journal

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Move:
    """A parked context that was moved or given up, for the trace; `tokens` of KV."""

    program: str
    kind: Literal["swap_out", "swap_in", "drop"]
    tokens: int


@dataclass(slots=True, eq=False)
class ParkedContext(Place):
    """The context of a call that has ended well.

    Attributes:
        order: of that call.
        since_s: when it ended.
    """

    order: Order
    since_s: float

    def row(self) -> Parked:
        """As the policies see it."""
        order = self.order
        return Parked(
            program=order.program,
            group=order.group,
            priority=order.priority,
            residency=self.residency,
            length=self.computed,
            since_s=self.since_s,
            root=order.root,
        )


class Parking:
    """Moves parked contexts as the policy says. Driven by the dispatcher's thread.

    A context that cannot be saved or brought back is given up: it costs a prefill, never an answer.

    Args:
        engine: whose contexts they are.
        tiers: where they go when they are stowed.
        residue: what the prefix cache is asked to keep of those that are dropped.

    Attributes:
        on: whether contexts are parked; see `switch`.
        rows: what the policies see of them.
        moves: what was moved since somebody took note of it.
    """

    def __init__(self, engine: Engine[Any, Any], tiers: SwapTiers, residue: Residue) -> None:
        self._engine = engine
        self._tiers = tiers
        self._residue = residue
        self._parked: dict[str, ParkedContext] = {}  # by program, in order of parking
        self._shown: dict[str, Parked] = {}
        self._changed: set[str] = set()
        self._wanted: dict[str, None] = {}  # to come back, not arrived yet
        self.rows = Journal(self._shown)
        self.on = False
        self.moves: list[Move] = []

    def __len__(self) -> int:
        return len(self._parked)

    def take_changed(self) -> set[str]:
        """The programs whose parked context has come, gone or moved since the last time."""
        changed, self._changed = self._changed, set()
        return changed

    def switch(self, *, on: bool) -> None:
        """Begin to park, on an engine whose pool is ours to plan, or give up all that is parked."""
        self.on = on and self._engine.capabilities.step_control
        if not self.on:
            self.clear()

    def park(self, order: Order, context: Context, now_s: float) -> None:
        """Keep the context of a call that has ended, in place of what its program had parked before."""
        before = self._take(order.program)
        parked = self._parked[order.program] = ParkedContext(order, now_s, context=context)
        self._show(parked)
        if before is not None:
            self._free(before)

    def stow(self, program: str) -> bool:
        """Swap a parked context out; False when there is none in the pool, or no room for it."""
        parked = self._parked.get(program)
        if parked is None or parked.context is None or not self._has_room(parked.computed):
            return False
        try:
            snapshot = self._engine.snapshot(parked.context)
        except Exception:  # noqa: BLE001 - what cannot be saved is computed again
            _log.exception("a parked context could not be swapped out")
            return self.drop(program)
        parked.context = None
        self._tiers.keep(parked, snapshot)
        self._residue.forget(program)  # it has a copy: the cache should rather keep what has none
        self.moves.append(Move(program, "swap_out", parked.computed))
        self._show(parked)
        return True

    def fetch(self, program: str) -> bool:
        """Bring a stowed context back; False when there is none, while it is on its way, or without room for it."""
        parked = self._parked.get(program)
        if parked is None or parked.context is not None:
            return False
        try:
            snapshot = self._tiers.bring(parked)
            if snapshot is None:
                self._wanted[program] = None
                return False
            self._wanted.pop(program, None)
            parked.context = self._engine.restore(snapshot)
        except KvExhausted:
            return False
        except Exception:  # noqa: BLE001 - as in `stow`
            _log.exception("a parked context could not be brought back")
            return self.forget(program)
        self._tiers.forget(parked)
        self.moves.append(Move(program, "swap_in", parked.computed))
        self._show(parked)
        return True

    def drop(self, program: str) -> bool:
        """Give a parked context up; what it has in the pool stays in the prefix cache until its room is needed."""
        parked = self._parked.get(program)
        if parked is None:
            return False
        self._keep_in_cache(parked)
        self.moves.append(Move(program, "drop", parked.computed))
        return self.forget(program)

    def forget(self, program: str) -> bool:
        """Free what a program has parked; False when there is nothing."""
        parked = self._take(program)
        if parked is not None:
            self._free(parked)
        return parked is not None

    def drop_oldest(self, residency: Residency) -> bool:
        """Give up the context that has been parked longest in the pool, or outside it; False when there is none."""
        for program, parked in self._parked.items():
            if parked.residency is residency:
                return self.drop(program)
        return False

    def clear(self) -> None:
        """Give everything up."""
        for program in [*self._parked]:
            self.drop(program)

    def settle(self) -> None:
        """Bring in what has arrived from the disk since."""
        for program in [*self._wanted]:
            self.fetch(program)

    def reusable(self, held: Held) -> int:
        """Tokens of a queued generation's prompt that its program's parked context has in the pool."""
        order = held.generation.order
        parked = self._parked.get(order.program)
        if parked is None or parked.context is None or not self._engine.capabilities.holds:
            return 0
        if held.compared is None or held.compared[0] is not parked:
            held.compared = (parked, self._common(parked.context, order) if parked.order.lora == order.lora else 0)
        return held.compared[1]

    def open(self, order: Order, opening: Callable[[], Context]) -> Context:
        """Open a program's next context while what it has parked is in the pool, and use that up."""
        parked = self._parked.get(order.program)
        if parked is not None:
            self._keep_in_cache(parked)
        context = opening()
        self.forget(order.program)
        return context

    def _common(self, context: Context, order: Order) -> int:
        if order.sampling.prompt_logprobs is not None:
            return 0  # such a context takes nothing from the cache
        return same_beginning(context.tokens, order.prompt, min(context.computed, len(order.prompt) - 1))

    def _has_room(self, tokens: int) -> bool:
        return self._engine.capabilities.snapshot and self._tiers.has_room and tokens <= self._tiers.room_tokens

    def _keep_in_cache(self, parked: ParkedContext) -> None:
        """Hold what is in the pool; also waits until it has arrived there, so that others find it."""
        if parked.context is None:
            return
        try:
            self._residue.keep(parked.order.program, parked.context, parked.order.priority)
        except Exception:  # noqa: BLE001 - as in `stow`
            _log.exception("a parked context did not arrive")

    def _show(self, parked: ParkedContext) -> None:
        program = parked.order.program
        self._shown[program] = parked.row()
        self._changed.add(program)
        self.rows.note(program)

    def _take(self, program: str) -> ParkedContext | None:
        parked = self._parked.pop(program, None)
        if parked is not None:
            self._wanted.pop(program, None)
            del self._shown[program]
            self._changed.add(program)
            self.rows.note(program)
        return parked

    def _free(self, parked: ParkedContext) -> None:
        self._tiers.forget(parked)
        context, parked.context = parked.context, None
        if context is not None:
            try:
                self._engine.release(context)
            except Exception:  # noqa: BLE001 - nobody's answer depends on it
                _log.exception("a parked context could not be released")
