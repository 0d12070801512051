"""Tools that the kernel hosts, for the agent that is on: listed and called by name.

`aios.tools.call("weather", {"city": "Lisbon"})`; `acall` is its async form. A call that the kernel's death cuts off is
sent again to the next kernel under the same idempotency key, so that its effect happens once. `submit` begins what
takes longer than anybody waits: a `Job`, which goes on without agent and kernel.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from aios_adapters._scope import required
from aios_kernel.errors import DeadlineExceeded, InvalidRequest, KernelUnavailable, from_code
from aios_kernel.syscalls import (
    JobList,
    Result,
    Syscall,
    ToolCancel,
    ToolInvoke,
    ToolJob,
    ToolJobs,
    ToolList,
    ToolOutput,
    Tools,
    ToolSpec,
    ToolSubmit,
    ToolWait,
    name_of,
)

R = TypeVar("R", bound=Result)

_AWAY_S = 10.0
"""How long a kernel that went away may take to come back."""
_PAUSE_S = 0.1


def specs() -> list[ToolSpec]:
    """Name, description and JSON schema of every tool that the kernel hosts."""
    return required("tools.specs").call(ToolList(), Tools).tools


def call(
    name: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float | None = None, key: str | None = None
) -> str:
    """Run a tool; gives its text.

    Args:
        name: the tool's.
        arguments: by name; JSON values.
        timeout_s: seconds it may take, the wait for its place included; None: what the tool or the kernel says.
        key: makes two calls one, for a day: the second is answered like the first. None: a call of its own.

    Raises:
        EffectUnknown: the kernel died in the middle of it, and it must not be run again.
        ToolError: it failed, timed out (ToolTimeout) or found no place in time (ToolNotStarted).
    """
    return _resent(_request(name, arguments, timeout_s, key), ToolOutput).content


async def acall(
    name: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float | None = None, key: str | None = None
) -> str:
    """Like `call`; cancelling the task cancels the call."""
    return (await _aresent(_request(name, arguments, timeout_s, key), ToolOutput)).content


class Job:
    """A long job: a hosted tool in a process of its own, which goes on when the agent or the kernel does not.

    Attributes:
        id: finds it again, in another process or on another day: `Job(id)`.
    """

    def __init__(self, id: str) -> None:
        self.id = id

    def wait(self, *, timeout_s: float | None = None, progress: Callable[[str], None] | None = None) -> str:
        """Wait for its end, the program parked meanwhile, and also for a kernel that was restarted; gives its text.

        Args:
            timeout_s: raise DeadlineExceeded after so many seconds; the job goes on. None: wait on.
            progress: called with each line that it prints, from its beginning on.

        Raises:
            Cancelled: somebody ended it.
            ToolError: it failed, or ran out of its time (ToolTimeout).
            EffectUnknown: its process vanished, and it must not be run again.
            NotFound: there is no such job, or it ended a week ago.
            AccessDenied: it is another agent's.
        """
        waiting = _Waiting(self.id, timeout_s, progress)
        while not waiting.over:
            waiting.take(_resent(waiting.call(), ToolJob))
        return waiting.result()

    async def await_end(self, *, timeout_s: float | None = None, progress: Callable[[str], None] | None = None) -> str:
        """Like `wait`; cancelling the task leaves the job."""
        waiting = _Waiting(self.id, timeout_s, progress)
        while not waiting.over:
            waiting.take(await _aresent(waiting.call(), ToolJob))
        return waiting.result()

    def cancel(self) -> None:
        """End it; returns when it has ended."""
        _resent(ToolCancel(self.id), ToolJob)

    def info(self) -> ToolJob:
        """How far it is."""
        return _resent(ToolWait(self.id, timeout_s=0.0), ToolJob)


def submit(
    name: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float | None = None, key: str | None = None
) -> Job:
    """Begin a hosted tool as a long job; on return it is durable, and will run.

    Args:
        name: the tool's; a command or a function of the tools file.
        arguments: by name; JSON values.
        timeout_s: seconds it may run; None: what the tool says, or a day.
        key: makes two submissions one job. None: a job of its own.
    """
    call = ToolSubmit(name, encoded(name, arguments), timeout_s, key or uuid.uuid4().hex)
    return Job(_resent(call, ToolJob).job)


async def asubmit(
    name: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float | None = None, key: str | None = None
) -> Job:
    """Like `submit`."""
    call = ToolSubmit(name, encoded(name, arguments), timeout_s, key or uuid.uuid4().hex)
    return Job((await _aresent(call, ToolJob)).job)


def jobs(*, ended: bool = False) -> list[ToolJob]:
    """The agent's long jobs, oldest first, and those of agents that ran below it or let it read `job/<their name>`.

    Args:
        ended: those of the last week, too.
    """
    return _resent(ToolJobs(ended), JobList).jobs


class _Waiting:
    """One wait for a job: what is asked next, and what has come."""

    def __init__(self, id: str, timeout_s: float | None, progress: Callable[[str], None] | None) -> None:
        self._id = id
        self._timeout_s = timeout_s
        self._ends_at = None if timeout_s is None else time.monotonic() + timeout_s
        self._progress = progress
        self._last: ToolJob | None = None
        self.over = False

    def call(self) -> ToolWait:
        left_s = None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())
        position = self._last.position if self._last is not None else 0
        return ToolWait(self._id, left_s, position if self._progress is not None else None)

    def take(self, job: ToolJob) -> None:
        self._last = job
        for line in job.lines:
            assert self._progress is not None
            self._progress(line)
        if job.ended_s is not None:
            self.over = not job.lines  # there may be more of them
        elif self._ends_at is not None and time.monotonic() >= self._ends_at:
            raise DeadlineExceeded(
                f"job {self._id} ({job.tool}) did not end within {self._timeout_s:g} s, and goes on",
                fix="wait again, or cancel it",
            )

    def result(self) -> str:
        assert self._last is not None
        if self._last.code:
            raise from_code(self._last.code, self._last.error)
        return self._last.content


def _request(name: str, arguments: Mapping[str, Any] | None, timeout_s: float | None, key: str | None) -> ToolInvoke:
    return ToolInvoke(name, encoded(name, arguments), timeout_s, key or uuid.uuid4().hex)


def encoded(name: str, arguments: Mapping[str, Any] | None) -> str:
    """A call's arguments as JSON. Raises InvalidRequest for values that are none."""
    try:
        return msgspec.json.encode(dict(arguments or {})).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the arguments of tool {name!a} are no JSON: {error}", fix="pass JSON values") from error


def _resent(call: Syscall, answer: type[R]) -> R:
    """Run a syscall that may be sent twice, over the death of a kernel."""
    scope = required(f"tools.{name_of(call).partition('.')[2]}")
    away = _Away(_AWAY_S if scope.begun else 0.0)
    while True:
        try:
            return scope.call(call, answer)
        except KernelUnavailable as error:
            time.sleep(away.pause_s(error))


async def _aresent(call: Syscall, answer: type[R]) -> R:
    scope = required(f"tools.{name_of(call).partition('.')[2]}")
    away = _Away(_AWAY_S if scope.begun else 0.0)
    while True:
        try:
            return await scope.acall(call, answer)
        except KernelUnavailable as error:
            await asyncio.sleep(away.pause_s(error))


class _Away:
    """A kernel that went away, and the patience with it."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: float | None = None

    def pause_s(self, error: KernelUnavailable) -> float:
        """Seconds until the next try. Raises the error when it has been away for too long."""
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since >= self._limit_s:
            raise error
        return _PAUSE_S
