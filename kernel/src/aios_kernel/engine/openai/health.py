"""Whether a model server answers: calls that break raise the doubt, a look at its list of models settles it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Watch:
    """How closely a server is watched, in seconds."""

    every_s: float = 5.0
    """Between looks at one that is up and has sent nothing meanwhile."""
    timeout_s: float = 10.0
    """Of a look."""
    misses: int = 3
    """Looks in vain after which one that takes connections and does not answer counts as down."""
    soonest_s: float = 0.1
    longest_s: float = 5.0
    """Between looks at one that is down; twice as long each time."""


class Health:
    """Of one server. Its methods are called on the connection's loop; `up` may be read from any thread.

    Args:
        url: for the log.
        look: asks the server for something cheap within so many seconds; gives the status of its answer.
        watch: how closely.

    Attributes:
        up: whether calls are to be sent there. Without a watch (`run`) nobody would bring it back, so it stays up.
    """

    def __init__(self, url: str, look: Callable[[float], Awaitable[int]], watch: Watch | None = None) -> None:
        self.up = True
        self._url, self._look, self._watch = url, look, watch or Watch()
        self._watched = False
        self._doubt = asyncio.Event()
        self._heard_s = -math.inf
        self._vain = 0  # looks in a row

    async def run(self) -> None:
        """Watch until cancelled."""
        self._watched = True
        await self._see()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._doubt.wait(), self._pause_s())
            doubted = self._doubt.is_set()
            self._doubt.clear()
            if doubted or not self.up or _now() - self._heard_s >= self._watch.every_s:
                await self._see()

    def heard(self) -> None:
        """It has sent something."""
        self._heard_s = _now()
        if not self.up or self._vain:
            self._rise()

    def doubt(self) -> None:
        """A call failed in a way that one may at a server that is up: look at once."""
        self._doubt.set()

    def refused(self, why: str) -> None:
        """It takes no connections: nothing is sent there until it has answered again."""
        self._fall(why)
        self._doubt.set()

    def _pause_s(self) -> float:
        if self.up and not self._vain:
            return self._watch.every_s
        return min(self._watch.longest_s, self._watch.soonest_s * 2 ** min(self._vain, 16))

    async def _see(self) -> None:
        try:
            status = await self._look(self._watch.timeout_s)
        except httpx.TimeoutException:
            self._miss("it is silent")
        except httpx.HTTPError as error:
            self._vain += 1
            self._fall(str(error) or type(error).__name__)
        else:
            if status < 500:
                self._heard_s = _now()
                self._rise()
            else:
                self._miss(f"it answers {status}")

    def _miss(self, why: str) -> None:
        self._vain += 1
        if self._vain >= self._watch.misses:
            self._fall(why)

    def _fall(self, why: str) -> None:
        if self.up and self._watched:
            self.up = False
            _log.warning("the model server at %s is down: %s", self._url, why)

    def _rise(self) -> None:
        self._vain = 0
        if not self.up:
            self.up = True
            _log.warning("the model server at %s answers again", self._url)


def _now() -> float:
    return asyncio.get_running_loop().time()
