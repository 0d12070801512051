"""Calls that come together begin together: an engine that rests is woken for all of them."""

from __future__ import annotations

import asyncio
import time

from aios_kernel.scheduler.dispatcher import Dispatcher

_MOST_S = 0.005
"""For how long calls that come one after the other may keep an engine that rests from its first step."""


class Gathering:
    """Wakes a dispatcher that rests once the loop has nothing at hand that brings a further call.

    Whoever asks many things at once sends them one after the other. A step for the first alone would cost a whole one,
    at its beginning and again at its end, and the others would come later.

    Args:
        loop: on which calls arrive.
        dispatcher: whose generations were submitted as `more`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, dispatcher: Dispatcher) -> None:
        self._loop = loop
        self._dispatcher = dispatcher
        self._looks = False

    def note(self) -> None:
        """Generations have been submitted, on the loop."""
        if self._dispatcher.unbegun and not self._looks:
            self._looks = True
            self._loop.call_soon(self._look, 0, time.monotonic() + _MOST_S)

    def _look(self, known: int, until_s: float) -> None:
        unbegun = self._dispatcher.unbegun
        if unbegun > known and time.monotonic() < until_s:
            self._loop.call_soon(self._look, unbegun, until_s)  # behind whatever has arrived meanwhile
            return
        self._looks = False
        self._dispatcher.wake()
