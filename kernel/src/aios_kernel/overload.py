"""How much a kernel takes at once, and when those that it refuses should come again."""

from __future__ import annotations

import time

from aios_kernel.errors import Busy

_ALWAYS = frozenset({"agent.exit", "tool.end"})
"""What ends something is let in, as is whatever looks after the kernel itself."""
_LEAST_S, _MOST_S = 0.1, 30.0
_SMOOTHING = 0.02


class Turns:
    """Gives out times to come again, one after the other, at the rate at which calls end.

    So the refused do not all return at once and are refused again.
    """

    def __init__(self) -> None:
        self._gap_s = 0.01  # between two ends, smoothed
        self._ended_s: float | None = None
        self._last_s = 0.0  # the last time that was given out

    def ended(self, now_s: float) -> None:
        """A call that was taken has ended."""
        if self._ended_s is not None:
            self._gap_s += _SMOOTHING * (min(1.0, now_s - self._ended_s) - self._gap_s)
        self._ended_s = now_s

    def next_s(self, now_s: float) -> float:
        """Seconds from now until it is the turn of the call that is being refused."""
        self._last_s = max(self._last_s + self._gap_s, now_s + _LEAST_S)
        self._last_s = min(self._last_s, now_s + _MOST_S)
        return self._last_s - now_s


class Gate:
    """Counts the open syscalls; `most` may be open."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.open = 0
        self._turns = Turns()

    @property
    def full(self) -> bool:
        """Whether most syscalls are refused now."""
        return self.open >= self.most

    def refusal(self, syscall: str) -> Busy | None:
        """The error for a syscall that comes now, with the time to come again; None: it may come in.

        Decided by its name alone, so that nobody need read it first.
        """
        if not self.full or syscall in _ALWAYS or syscall.startswith("kernel."):
            return None
        return Busy(f"{self.open:,} syscalls are open", retry_after_s=self._turns.next_s(time.monotonic()))

    def enter(self) -> None:
        """One has come in."""
        self.open += 1

    def leave(self) -> None:
        """One has ended."""
        self.open -= 1
        self._turns.ended(time.monotonic())
