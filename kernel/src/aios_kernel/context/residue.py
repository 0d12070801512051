"""What the prefix cache is asked to keep of programs between two of their calls."""

from __future__ import annotations

from typing import Any, cast

from aios_kernel.engine.protocol import Context, Engine, Hold, PrefixHolds
from aios_kernel.syscalls import Priority

_PRIORITIES: dict[Priority, int] = {"batch": 1, "normal": 2, "interactive": 3}
"""In the prefix cache; what no living program has left there has 0 and goes first."""
_TTL_S = 600.0
"""A program that has asked for nothing for so long is not waited for."""


class Residue:
    """Holds the last context of each living program, so that the KV of ended programs is evicted before it.

    Does nothing on an engine without `Capabilities.holds`.
    """

    def __init__(self, engine: Engine[Any, Any]) -> None:
        self._engine = cast("PrefixHolds[Any]", engine) if engine.capabilities.holds else None
        self._holds: dict[str, Hold] = {}

    def keep(self, program: str, context: Context, priority: Priority) -> None:
        """Keep what a program's call has computed, in place of what the call before had; before its release."""
        if self._engine is None:
            return
        before = self._holds.get(program)
        self._holds[program] = self._engine.hold(context, priority=_PRIORITIES[priority], ttl_s=_TTL_S)
        if before is not None:
            self._engine.drop(before)

    def forget(self, program: str) -> None:
        """Keep nothing any longer of a program that has ended."""
        hold = self._holds.pop(program, None)
        if hold is not None and self._engine is not None:
            self._engine.drop(hold)
