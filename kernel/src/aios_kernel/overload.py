"""When those that a full kernel refuses should come again: one after the other, at the rate at which calls end."""

from __future__ import annotations

_LEAST_S, _MOST_S = 0.1, 30.0
_SMOOTHING = 0.02


class Turns:
    """Gives out times to come again, so that the refused do not all return at once and are refused again."""

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
