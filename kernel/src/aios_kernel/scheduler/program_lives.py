"""How far programs go: learned on line from those that have ended, to predict what is left of one."""

from __future__ import annotations

from aios_kernel.scheduler.program_pauses import History

_LEARNING = 0.1
_STAY_S = 900.0
_GROWN = 75_000.0
"""Assumed of a program's stay until some have ended: seconds, and tokens that its context grows by."""
_UNSEEN = 0.125
"""A context longer than all that ended is expected to grow by an eighth."""


class Lives:
    """Of programs that have ended.

    Attributes:
        final: how long their contexts were, on average; 0 before the first has ended.
        stay_s: how long they were in, from admission to their end, on average.
    """

    def __init__(self) -> None:
        self.final = 0.0
        self.stay_s = _STAY_S
        self._grown = _GROWN
        self._finals = History()

    def ended(self, length: int, grown: int, stay_s: float) -> None:
        """A program ended: tokens of its context, how many came while it was in, and for how long that was."""
        self._finals.add(length)
        self.final += _LEARNING * (length - self.final) if self.final else length
        self.stay_s += _LEARNING * (stay_s - self.stay_s)
        self._grown += _LEARNING * (grown - self._grown)

    def rest_s(self, length: int) -> float:
        """Seconds in which a program with a context of so many tokens is expected to end, once it is in.

        The mean growth of those that ended longer, at the pace of all. Attained service says less: in recorded
        coding sessions what is left hardly depends on it.
        """
        growth = self._finals.remaining(length, (1 + _UNSEEN) * length)
        return growth * self.stay_s / max(self._grown, 1.0)
