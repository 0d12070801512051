"""Copies of KV between the pool and host memory, beside the steps of the engine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

INLINE_BYTES = 1 << 20
"""Copies up to this size are made at once: handing them to the thread takes longer."""


class Mover:
    """One thread that copies, in the order in which it was asked to.

    Args:
        background: False makes every copy at once: a device's copies belong into the device's own queue.
        inline_bytes: size up to which a copy is made at once if no other is under way.
    """

    def __init__(self, *, background: bool, inline_bytes: int = INLINE_BYTES) -> None:
        self._background = background
        self.inline_bytes = inline_bytes
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    def run(self, copy: Callable[[], None], nbytes: int) -> Future[None]:
        """Make a copy of `nbytes`; the future is done once it is made, or holds what it raised."""
        idle = self._last is None or self._last.done()
        if not self._background or (idle and nbytes <= self.inline_bytes):
            return _run_now(copy)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="aios-kv-copy")
        self._last = self._thread.submit(copy)
        return self._last

    def close(self) -> None:
        """Wait for what is under way and end the thread."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None


def _run_now(copy: Callable[[], None]) -> Future[None]:
    done: Future[None] = Future()
    try:
        copy()
    except Exception as error:  # noqa: BLE001 - as on the thread: whoever waits for the copy is told
        done.set_exception(error)
    else:
        done.set_result(None)
    return done
