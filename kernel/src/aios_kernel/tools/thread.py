"""One attempt of a hosted tool, on a thread of its own."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar, final

import msgspec

from aios_kernel.errors import ToolError, ToolNotStarted, ToolTimeout
from aios_kernel.tools.hosted import HostedTool

T = TypeVar("T")

_MAX_OUTPUT = 16 * 1024 * 1024

_log = logging.getLogger(__name__)


@final
class ToolThread:
    """Runs a tool once. Python cannot end a thread: one that hangs is left alone and keeps its place until it returns.

    Args:
        tool: what to run.
        arguments: its keywords.
        timeout_s: after which a coroutine is cancelled.
        over: called on the thread when the tool has returned, whoever still waits.

    Attributes:
        outcome: the tool's text, or the `ToolError` that it ended with. Nothing cancels it: whoever records what has
            happened hears of it, however late.
    """

    def __init__(
        self, tool: HostedTool, arguments: Mapping[str, Any], timeout_s: float, over: Callable[[ToolThread], None]
    ) -> None:
        self.outcome: Future[str] = Future()
        self._tool = tool
        self._arguments = dict(arguments)
        self._timeout_s = timeout_s
        self._over = over
        self._lock = threading.Lock()
        self._task: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        self._abandoned = False
        # A thread of its own, not an executor's: an executor joins its threads at exit and would hang with them.
        self._thread = threading.Thread(target=self._run, name=f"aios-tool-{tool.spec.name}", daemon=True)

    @property
    def name(self) -> str:
        """The thread's name, for the log."""
        return self._thread.name

    @property
    def alive(self) -> bool:
        """Whether the tool still runs."""
        return self._thread.is_alive()

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits any more."""
        return self._abandoned

    def start(self) -> None:
        """Begin. Raises ToolNotStarted when the system has no thread."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self.drop()
            raise ToolNotStarted(
                f"no thread for the tool: {error}", fix="wait for calls to end", retry_after_s=1.0
            ) from error

    def abandon(self) -> None:
        """Nobody waits any more: a coroutine is cancelled. Thread-safe."""
        with self._lock:
            self._abandoned = True
            if self._task is not None:
                loop, task = self._task
                loop.call_soon_threadsafe(task.cancel)

    def drop(self) -> None:
        """Give the place back, instead of starting."""
        self._over(self)

    def join(self, seconds: float) -> None:
        """Wait for the tool to return; blocks."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        outcome: str | ToolError
        try:
            value = self._tool.run(**self._arguments)
            if inspect.isawaitable(value):
                value = asyncio.run(self._within(value))
            outcome = text_of(self._tool.spec.name, value)
        except ToolError as error:
            outcome = error
        except BaseException as error:  # noqa: BLE001 - also SystemExit: a tool may end its call, not the kernel
            _log.info('tool "%s" raised', self._tool.spec.name, exc_info=error)
            outcome = ToolError(f'tool "{self._tool.spec.name}" failed: {type(error).__name__}: {error}')
        self._over(self)
        if isinstance(outcome, ToolError):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)

    async def _within(self, value: Awaitable[object]) -> object:
        """Await a coroutine until its time is over, or nobody waits for it."""
        work = asyncio.ensure_future(value)
        with self._lock:
            self._task = (asyncio.get_running_loop(), work)
            if self._abandoned:
                work.cancel()
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                return await work
        except TimeoutError:
            if limit.expired():  # the caller's own clock may be a moment behind
                raise out_of_time(self._tool.spec.name, self._timeout_s) from None
            raise
        except asyncio.CancelledError:
            if self._abandoned:
                raise ToolTimeout(f'tool "{self._tool.spec.name}" was cancelled: nobody waited for it') from None
            raise
        finally:
            with self._lock:
                self._task = None


def detached(call: Callable[[], Any], name: str) -> Future[Any]:
    """Call a function, which may be a coroutine function, on a thread that nothing waits for at the end."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            value = call()
            outcome.set_result(asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value)
        except BaseException as error:  # noqa: BLE001 - whatever it raises is its outcome
            outcome.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return outcome


async def heard(outcome: Future[T]) -> T:
    """The outcome of a thread. Cancelling this leaves the thread alone."""
    inner = asyncio.wrap_future(outcome)
    inner.add_done_callback(lambda done: done.cancelled() or done.exception())  # also when nobody waits any more
    return await asyncio.shield(inner)


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def out_of_time(name: str, timeout_s: float) -> ToolTimeout:
    """The error of a call whose time is over."""
    return ToolTimeout(f'tool "{name}" did not end within {timeout_s:g} s', fix="raise timeout_s or mend the tool")


def text_of(name: str, value: object) -> str:
    """A tool's value as the text that the model reads."""
    if isinstance(value, str):
        text = value
    else:
        try:
            text = msgspec.json.encode(value).decode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ToolError(f'tool "{name}" returned a {type(value).__name__}, which is no JSON: {error}') from error
    if len(text) > _MAX_OUTPUT:
        raise ToolError(f'tool "{name}" returned {len(text):,} characters; the limit is {_MAX_OUTPUT:,}')
    return text
