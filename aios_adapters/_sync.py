"""Running blocking functions in other threads."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_MOST_IDLE = 8


class Job:
    """A function to run in a copy of the context that it was made in; its outcome is a result or an error."""

    __slots__ = ("_context", "_run", "outcome")

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run
        self._context = contextvars.copy_context()
        self.outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def perform(self) -> tuple[Any, BaseException | None]:
        """Run it."""
        try:
            return self._context.run(self._run), None
        except BaseException as error:  # noqa: BLE001 - whatever the tool raises belongs to its caller
            return None, error


class Worker(threading.Thread):
    """A thread that runs one job after the other; starting one costs more than most tools."""

    def __init__(self, pool: Workers, job: Job) -> None:
        super().__init__(name="aios-tool", daemon=True)
        self._pool = pool
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.jobs.put(job)

    def run(self) -> None:
        """Work until nobody needs it."""
        while (job := self.jobs.get()) is not None:
            outcome = job.perform()
            stays = self._pool.rejoin(self)  # before its caller goes on, whose next job it can take
            job.outcome.put(outcome)
            del job, outcome  # the result is the caller's alone
            if not stays:
                return


class Workers:
    """Threads that wait for a job. There is always one more: jobs may wait for each other."""

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)  # threads stay behind in a fork

    def start(self, job: Job) -> None:
        """Let an idle thread run a job, or a new one."""
        try:
            self._idle.pop().jobs.put(job)
        except IndexError:
            Worker(self, job).start()

    def rejoin(self, worker: Worker) -> bool:
        """Take a thread back, unless enough wait."""
        if len(self._idle) >= _MOST_IDLE:
            return False
        self._idle.append(worker)
        return True

    def _forget(self) -> None:
        self._idle: collections.deque[Worker] = collections.deque()


_workers = Workers()


def start(job: Job) -> None:
    """Run a job in a waiting thread, or a new one (a daemon: one that hangs does not keep the program alive)."""
    _workers.start(job)


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
