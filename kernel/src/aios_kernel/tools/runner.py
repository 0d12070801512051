"""Attempts of hosted tools: a place first, then a thread, each within the call's time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, final

from aios_kernel.errors import ToolNotStarted
from aios_kernel.tools.hosted import HostedTool, Retry
from aios_kernel.tools.slots import Demand, Slots
from aios_kernel.tools.thread import ToolThread, heard, out_of_time

_CLOSE_S = 2.0

_log = logging.getLogger(__name__)


class TimeLimit(NamedTuple):
    """The time of a call: when it ends (`time.monotonic()`), and how long that was from its beginning; in seconds."""

    ends_at: float
    limit_s: float

    @classmethod
    def starting_now(cls, limit_s: float) -> TimeLimit:
        """So many seconds from now on."""
        return cls(time.monotonic() + limit_s, limit_s)

    @property
    def left_s(self) -> float:
        """What is left of it, 0 at the end."""
        return max(0.0, self.ends_at - time.monotonic())


@final
class ToolRunner:
    """Runs attempts, as many at a time as the slots allow. Lives on one event loop."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._threads: set[ToolThread] = set()

    async def admit(self, tool: HostedTool, arguments: Mapping[str, Any], owner: str, span: TimeLimit) -> ToolThread:
        """Wait for a place; gives the attempt that holds it, to be started or dropped.

        Raises:
            ToolNotStarted: the call's time was over before there was one.
        """
        demand = Demand(f"hosted {tool.spec.name}", tool.max_running, tool.exclusive, pool="thread")
        if not self._slots.take_now(demand):
            try:
                async with asyncio.timeout(span.left_s):  # wait_for would lose the place of a call that is cancelled
                    await self._slots.take(demand, owner)
            except TimeoutError:
                raise no_place(tool.spec.name, span.limit_s, tool.exclusive) from None
        loop = asyncio.get_running_loop()

        def over(thread: ToolThread) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits for places
                loop.call_soon_threadsafe(self._over, thread, demand)

        thread = ToolThread(tool, arguments, span.left_s, over)
        self._threads.add(thread)
        return thread

    async def result(self, thread: ToolThread, name: str, span: TimeLimit) -> str:
        """What a started attempt returns. It is abandoned when the time is over or the caller has gone.

        Raises:
            ToolTimeout: the time is over.
            ToolError: what the tool raised.
        """
        try:
            return await asyncio.wait_for(heard(thread.outcome), span.left_s)
        except TimeoutError:
            raise out_of_time(name, span.limit_s) from None
        finally:
            if not thread.outcome.done():
                thread.abandon()

    async def close(self) -> None:
        """Wait a moment for running attempts; threads that hang end with the process."""
        for thread in self._threads:
            thread.abandon()
        await asyncio.to_thread(self._join, time.monotonic() + _CLOSE_S)
        await asyncio.sleep(0)  # what the threads have scheduled
        alive = sorted(thread.name for thread in self._threads if thread.alive)
        if alive:
            _log.warning("%d tool calls still run at the shutdown: %s", len(alive), ", ".join(alive))

    def _join(self, deadline: float) -> None:
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _over(self, thread: ToolThread, demand: Demand) -> None:
        self._threads.discard(thread)
        self._slots.give(demand)


def no_place(name: str, limit_s: float, exclusive: str | None) -> ToolNotStarted:
    """The error of a call that waited for its place until its time was over."""
    group = f' (one at a time of its group "{exclusive}")' if exclusive else ""
    return ToolNotStarted(
        f'tool "{name}" was not begun within {limit_s:g} s: others were running{group}',
        fix="call again later, raise timeout_s, or raise the tool's max_running",
        retry_after_s=1.0,
    )


def pause_s(retry: Retry, attempt: int, span: TimeLimit) -> float | None:
    """Seconds to wait after a failed attempt (the first is 1); None: it was the last, or the time would be over."""
    wait_s = retry.wait_s * retry.backoff ** (attempt - 1)
    return wait_s if attempt < retry.attempts and wait_s < span.left_s else None
