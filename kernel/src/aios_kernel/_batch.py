"""A thread that handles, in one go, everything that was queued while it was busy."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, final

from aios_kernel.errors import Cancelled

T = TypeVar("T")

_log = logging.getLogger(__name__)


class _Stop:
    """The last thing in the queue."""


@final
class BatchThread(Generic[T]):
    """Feeds batches of queued items to `handle`, one batch at a time, in order, on a thread of its own.

    Group commits, batched embeddings and the index written behind are all this one pattern.

    Args:
        handle: takes a batch; must answer for each item itself, whatever it raises is only logged.
        name: the thread's name.
        linger_s: seconds to wait after the first item so that a batch can grow.
        max_items: the largest batch.
    """

    def __init__(
        self, handle: Callable[[list[T]], None], *, name: str, linger_s: float = 0.0, max_items: int = 1024
    ) -> None:
        self._handle = handle
        self._linger_s = linger_s
        self._max_items = max_items
        self._queue: SimpleQueue[T | _Stop] = SimpleQueue()
        self._hurry = threading.Event()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T, *, urgent: bool = False) -> None:
        """Queue an item from any thread; `urgent` ends the lingering. Raises `Cancelled` after `close`."""
        # The lock keeps items from landing behind the stop mark, where nobody would answer them.
        with self._lock:
            if self._closed:
                raise Cancelled("the kernel is shutting down", fix="aios serve")
            self._queue.put(item)
        if urgent:
            self._hurry.set()

    def close(self) -> None:
        """Handle what is queued, then end the thread; blocks until then."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(_Stop())
        self._hurry.set()
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            first = self._queue.get()
            if isinstance(first, _Stop):
                return
            if self._linger_s and self._queue.qsize() < self._max_items:
                self._hurry.wait(self._linger_s)
                self._hurry.clear()
            batch, stopping = self._drain(first)
            try:
                self._handle(batch)
            except Exception:  # noqa: BLE001 - a fault in one batch must not end the thread that serves all
                _log.exception("a batch of %d items failed", len(batch))

    def _drain(self, first: T) -> tuple[list[T], bool]:
        batch = [first]
        while len(batch) < self._max_items:
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
            if isinstance(item, _Stop):
                return batch, True
            batch.append(item)
        return batch, False
