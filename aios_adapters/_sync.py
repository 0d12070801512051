"""Running a blocking function under a time limit."""

from __future__ import annotations

import asyncio
import contextlib
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


async def in_thread(run: Callable[[], T]) -> T:
    """Await `run()` in a thread of its own, in a copy of this context.

    Unlike the loop's executor there is always a thread free, so that calls which wait for each other cannot block
    all of them. A cancelled call abandons its thread (a daemon).
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: T | None, error: BaseException | None) -> None:
        if outcome.cancelled():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        settled: tuple[T | None, BaseException | None]
        try:
            settled = (context.run(run), None)
        except StopIteration as error:  # a future cannot carry it
            settled = (None, RuntimeError(f"StopIteration: {error}"))
        except BaseException as error:  # noqa: BLE001 - belongs to whoever awaits
            settled = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop was closed; whoever awaited has gone with it
            loop.call_soon_threadsafe(settle, *settled)

    threading.Thread(target=work, name="aios-step", daemon=True).start()
    return await outcome
