"""How long programs pause: learned on line for each agent and tool, to predict when a paused one comes back."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass

_KEPT = 256
"""Durations remembered of each agent and tool; older ones are forgotten."""
_STALE = 20
"""An expected rest is found anew when a twentieth of it has passed."""
_PRIOR_WEIGHT = 4
"""How many observed pauses a declared or assumed duration counts for."""


class History:
    """Past durations of one kind of pause, in seconds."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._sums: list[float] | None = None

    def add(self, seconds: float) -> None:
        """Remember one."""
        if len(self._recent) == _KEPT:
            del self._sorted[bisect_right(self._sorted, self._recent.popleft()) - 1]
        self._recent.append(seconds)
        insort(self._sorted, seconds)
        self._sums = None

    def remaining(self, elapsed_s: float, prior_s: float) -> float:
        """Expected rest of a pause that has lasted `elapsed_s`: the mean over longer ones, and the prior's.

        A pause longer than all before is expected to last as long again.
        """
        if self._sums is None:
            total = 0.0
            self._sums = [total]
            for seconds in reversed(self._sorted):
                total += seconds
                self._sums.append(total)
        longer = len(self._sorted) - bisect_right(self._sorted, elapsed_s)
        rest = self._sums[longer] - longer * elapsed_s
        weight = _PRIOR_WEIGHT if len(self._sorted) < 8 * _PRIOR_WEIGHT or not longer else 0
        prior = prior_s - elapsed_s if prior_s > elapsed_s else max(elapsed_s, 0.1)
        return (rest + weight * prior) / (longer + weight)


@dataclass(slots=True)
class _Pause:
    since_s: float
    tool: str = ""
    expected_s: float | None = None
    asked_s: float = -1.0
    rest_s: float = -1.0
    """As found at `asked_s`; good for a little while."""


class Pauses:
    """Which programs pause, on what, since when.

    Args:
        default_s: assumed for a pause that nothing is known of.
    """

    def __init__(self, default_s: float) -> None:
        self._default_s = default_s
        self._open: dict[str, _Pause] = {}
        self._histories: dict[tuple[str, str], History] = {}
        self._agents: dict[str, str] = {}

    def name_agent(self, program: str, agent: str) -> None:
        """Whose program it is."""
        self._agents[program] = agent

    def call_ended(self, program: str, now_s: float) -> None:
        """A pause begins; on what is said by `tool_began`, or never."""
        self._open[program] = _Pause(now_s)

    def tool_began(self, program: str, tool: str, expected_s: float | None, now_s: float) -> None:
        """The pause is a tool's."""
        self._open[program] = _Pause(now_s, tool, expected_s)

    def tool_ended(self, program: str, tool: str, seconds: float | None, now_s: float) -> None:
        """Learn the tool's time, if it is told; the next call is due at once."""
        if seconds is not None:
            self._history(program, tool).add(seconds)
        self._open[program] = _Pause(now_s, "", 0.0)

    def call_arrived(self, program: str, now_s: float) -> None:
        """The pause is over. One without a tool is learned too: a user's."""
        pause = self._open.pop(program, None)
        if pause is not None and not pause.tool and pause.expected_s is None:
            self._history(program, "").add(now_s - pause.since_s)

    def program_ended(self, program: str) -> None:
        """Forget it; what its tools took is kept."""
        self._open.pop(program, None)
        self._agents.pop(program, None)

    def remaining(self, program: str, now_s: float) -> float:
        """Expected seconds until a program's next call; 0 for one that does not pause."""
        pause = self._open.get(program)
        if pause is None:
            return 0.0
        gone = now_s - pause.asked_s
        if gone * _STALE >= pause.rest_s:
            pause.asked_s, pause.rest_s, gone = now_s, self._expect(program, pause, now_s - pause.since_s), 0.0
        return pause.rest_s - gone

    def expected(self, program: str, now_s: float) -> tuple[float, float]:
        """When a program's next call is expected, and until when that stands if nothing happens.

        Long ago and for good, for one that does not pause.
        """
        rest_s = self.remaining(program, now_s)
        pause = self._open.get(program)
        if pause is None:
            return -math.inf, math.inf
        return now_s + rest_s, pause.asked_s + pause.rest_s / _STALE

    def _expect(self, program: str, pause: _Pause, elapsed_s: float) -> float:
        if pause.expected_s == 0.0:
            return elapsed_s  # its call is due
        prior = self._default_s if pause.expected_s is None else pause.expected_s
        return self._history(program, pause.tool).remaining(elapsed_s, prior)

    def _history(self, program: str, tool: str) -> History:
        key = (self._agents.get(program, ""), tool)
        found = self._histories.get(key)
        if found is None:
            found = self._histories[key] = History()
        return found
