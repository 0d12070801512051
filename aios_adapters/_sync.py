"""Running a blocking function under a time limit."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def run_with_limit(run: Callable[[], T], limit_s: float, timed_out: BaseException) -> T:
    """Run `run` in a thread of its own, in a copy of this context, and raise `timed_out` after `limit_s` seconds.

    A thread cannot be killed: one that hangs is abandoned (a daemon, so that it does not keep the program alive).
    """
    outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            outcome.put((context.run(run), None))
        except BaseException as error:  # noqa: BLE001 - whatever the tool raises belongs to its caller
            outcome.put((None, error))

    threading.Thread(target=work, name="aios-tool", daemon=True).start()
    try:
        result, error = outcome.get(timeout=limit_s)
    except queue.Empty:
        raise timed_out from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
