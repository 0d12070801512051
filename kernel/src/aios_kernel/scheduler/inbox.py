"""Orders to a thread that rests while there are none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeAlias

Order: TypeAlias = Callable[[], object]


class Inbox:
    """Orders in the order in which they came. `put`, `put_quietly` and `wake` may be called from any thread.

    An order that is put quietly does not wake a thread that rests: who has several of them at hand wakes it once, with
    the last one. Whatever comes in the ordinary way wakes it too, and comes behind them.
    """

    def __init__(self) -> None:
        self._orders: SimpleQueue[Order] = SimpleQueue()
        self._quiet: list[Order] = []
        self._lock = threading.Lock()  # nothing is queued behind the last look
        self._closed = False
        self._rests = False

    def put(self, order: Order) -> bool:
        """Queue an order; False after `close`: nobody will carry it out."""
        with self._lock:
            self._wake()
            if not self._closed:
                self._orders.put(order)
            return not self._closed

    def put_quietly(self, order: Order) -> bool:
        """Queue an order that waits for `wake`, if the thread rests; False after `close`, as `put`."""
        with self._lock:
            if self._rests and not self._closed:
                self._quiet.append(order)
                return True
        return self.put(order)

    @property
    def rests(self) -> bool:
        """Whether the thread has nothing to do, so that quiet orders wait."""
        return self._rests

    @property
    def quiet(self) -> int:
        """How many orders wait for `wake`."""
        return len(self._quiet)

    def wake(self) -> None:
        """Have the thread take what was put quietly."""
        with self._lock:
            self._wake()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to take now; for the thread itself."""
        return self._orders.empty()

    def take(self) -> Order:
        """The next order of an inbox that is not empty."""
        return self._orders.get_nowait()

    def wait(self, timeout_s: float | None, *, rest: bool = False) -> Order:
        """The next order, once there is one; raises `queue.Empty` when none has come in time.

        Args:
            timeout_s: seconds; None: for ever.
            rest: whether the thread has nothing else to do, so that what is put quietly may wait.
        """
        self._rests = rest
        try:
            return self._orders.get(timeout=timeout_s)
        finally:
            self._rests = False

    def close(self) -> None:
        """Take no more orders; those that have come can still be taken."""
        with self._lock:
            self._closed = True
            self._wake()

    def _wake(self) -> None:
        for order in self._quiet:
            self._orders.put(order)
        self._quiet.clear()
