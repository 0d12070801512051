"""Steps that a plan holds for: the same contexts decode, and nothing is decided or told of before it matters."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

from aios_kernel.context.manager import Held
from aios_kernel.engine.protocol import Context
from aios_kernel.scheduler.protocol import Computed, Event
from aios_kernel.scheduler.roster import Roster


class Stretch:
    """The steps after one whose plan holds on (`Plan.repeat`). Used by the dispatcher's thread.

    Tokens that only carry answers on are not handed to these one by one: between two steps of a model the processor's
    caches hold nothing of them, and to touch every answer took longer than all else that is done in such a step.

    Args:
        roster: whose policy is told at the end.

    Attributes:
        left: steps that may still be made without asking the policy.
        members: who decodes.
        plan: the same as the engine wants it.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._untold = 0
        self._rows: list[Sequence[int]] = []  # the members' tokens of each step, which their answers have not got yet
        self._telling: frozenset[int | None] = frozenset()  # tokens that mean more than that an answer goes on
        self._sure = 0  # steps in which no answer reaches its limit
        self.left = 0
        self.members: Sequence[Held] = ()
        self.plan: list[tuple[Context, int]] = []

    def begin(self, batch: Sequence[tuple[Held, Context, int]], steps: int) -> None:
        """Let a batch that has just been computed go on for some steps, if all of it decodes."""
        if any(
            context.pending != 1 or held.generation.ended or held.generation.generated < 2 for held, context, _ in batch
        ):
            return
        self.left = steps
        self.members = [held for held, _, _ in batch]
        self.plan = [(context, 1) for _, context, _ in batch]
        self._telling = frozenset((None, *self.members[0].generation.codec.end_tokens))
        self._sure = min(held.generation.unheard for held in self.members)
        self._rows = []
        for held in self.members:
            held.generation.ahead = self._rows

    def keep(self, tokens: Sequence[int | None]) -> bool:
        """Take a step's tokens if all answers only go on; else nothing is done, and each is to be looked at."""
        if len(self._rows) < self._sure and self._telling.isdisjoint(tokens):
            self._rows.append(cast("Sequence[int]", tokens))
            return True
        self._hand_over()
        return False

    def stepped(self) -> None:
        """One of the steps has been made: each member emits a token."""
        self.left -= 1
        self._untold += 1

    def end(self) -> None:
        """Book what has been computed and tell the policy; it is asked again before the next step."""
        self.left = 0
        self._hand_over()
        steps, self._untold = self._untold, 0
        if steps:
            told: list[Event] = []
            for held in self.members:
                generation = held.generation
                generation.computed += steps
                told.append(Computed(generation.id, generation.order.program, steps, steps))
            self._roster.tell_all(told, time.monotonic())
        self.members = ()

    def _hand_over(self) -> None:
        """Give the answers their tokens."""
        rows, self._rows = self._rows, []
        if rows:
            for held, tokens in zip(self.members, zip(*rows, strict=True), strict=True):
                held.generation.keep_all(tokens)
        self._sure = 0
