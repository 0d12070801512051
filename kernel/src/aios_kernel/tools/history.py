"""How long tools took before: what the scheduler may expect of the next call."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import final

_RECENT = 64
_TOOLS = 1024


@dataclass(frozen=True, slots=True)
class Latency:
    """The calls of one tool: how many ended, their mean in seconds, and the youngest durations, oldest first."""

    count: int
    mean_s: float
    recent_s: tuple[float, ...]


class _Calls:
    """Running totals of one tool."""

    __slots__ = ("count", "recent_s", "total_s")

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0
        self.recent_s: deque[float] = deque(maxlen=_RECENT)


@final
class History:
    """Latencies by tool name. Agents choose the names, so only the 1,024 names used last are kept."""

    def __init__(self) -> None:
        self._tools: OrderedDict[str, _Calls] = OrderedDict()

    def add(self, tool: str, seconds: float) -> None:
        """Record an ended call."""
        calls = self._tools.pop(tool, None) or _Calls()
        self._tools[tool] = calls
        calls.count += 1
        calls.total_s += seconds
        calls.recent_s.append(seconds)
        if len(self._tools) > _TOOLS:
            self._tools.popitem(last=False)

    def of(self, tool: str) -> Latency | None:
        """What is known of a tool, if anything."""
        calls = self._tools.get(tool)
        return None if calls is None else Latency(calls.count, calls.total_s / calls.count, tuple(calls.recent_s))
