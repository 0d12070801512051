"""Steps that a plan holds for: the same contexts decode, and nothing is decided or told of before it matters."""

from __future__ import annotations

from collections.abc import Sequence

from aios_kernel.context.manager import Held
from aios_kernel.engine.protocol import Context
from aios_kernel.scheduler.protocol import Computed
from aios_kernel.scheduler.roster import Roster


class Stretch:
    """The steps after one whose plan holds on (`Plan.repeat`). Used by the dispatcher's thread.

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

    def stepped(self) -> None:
        """One of the steps has been made: each member emits a token."""
        self.left -= 1
        self._untold += 1

    def end(self) -> None:
        """Book what has been computed and tell the policy; it is asked again before the next step."""
        self.left = 0
        steps, self._untold = self._untold, 0
        if steps:
            for held in self.members:
                generation = held.generation
                generation.computed += steps
                self._roster.tell(Computed(generation.id, generation.order.program, steps, steps))
        self.members = ()
