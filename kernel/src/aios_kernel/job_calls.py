"""The syscalls of long jobs; a program that waits for its job is paused on the tool, as in a call."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from aios_kernel.calls import OpenCall
from aios_kernel.errors import InvalidRequest
from aios_kernel.scheduler.protocol import Event, ToolBegan, ToolEnded
from aios_kernel.syscalls import JobList, ToolCancel, ToolJob, ToolJobs, ToolSubmit, ToolWait
from aios_kernel.tools import Caller, JobManager, check_allowed

if TYPE_CHECKING:
    from aios_kernel.kernel import Handler
    from aios_kernel.managers import Managers


class JobService:
    """`tool.submit`, `tool.wait`, `tool.cancel` and `tool.jobs`."""

    def __init__(self, managers: Managers, observe: Callable[[Event], None]) -> None:
        self._jobs: JobManager = managers.jobs
        self._registry = managers.tools
        self._observe = observe

    def routes(self) -> dict[type, Handler]:
        """The handlers by syscall."""
        return {ToolSubmit: self._submit, ToolWait: self._wait, ToolCancel: self._cancel, ToolJobs: self._list}

    async def _submit(self, open_call: OpenCall, call: ToolSubmit) -> ToolJob:
        program = open_call.program
        check_allowed(call.name, program.terms.tools)
        return await self._jobs.submit(call, Caller(program.principal, program.agent, program.id))

    async def _wait(self, open_call: OpenCall, call: ToolWait) -> ToolJob:
        if call.timeout_s is not None and not call.timeout_s >= 0:
            raise InvalidRequest(f"timeout_s is {call.timeout_s}; it must be 0 or more", fix="change timeout_s")
        if call.position is not None and call.position < 0:
            raise InvalidRequest(f"position is {call.position}", fix="give the position of the last answer, or 0")
        row = await self._jobs.find(open_call.program.principal, call.job)
        if row.over:
            return await self._jobs.wait(open_call.program.principal, call)
        expected_s = self._registry.expected_s(row.tool)
        if expected_s is not None and row.started_s is not None:
            expected_s = max(0.0, expected_s - (time.time() - row.started_s))
        with self._paused(open_call, row.tool, expected_s):
            return await self._jobs.wait(open_call.program.principal, call)

    @contextlib.contextmanager
    def _paused(self, open_call: OpenCall, name: str, expected_s: float | None) -> Generator[None]:
        """The program of a call waits for a tool inside: it is parked and accounted like that."""
        program, key, began = open_call.program, f"call-{open_call.id}", time.monotonic()
        program.tools[key] = name
        self._observe(ToolBegan(program.id, name, expected_s))
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            program.tools.pop(key, None)
            program.account.tool_s += seconds
            if program.finished_s is None:
                self._observe(ToolEnded(program.id, name, seconds))

    async def _cancel(self, open_call: OpenCall, call: ToolCancel) -> ToolJob:
        return await self._jobs.cancel(open_call.program.principal, call.job)

    async def _list(self, open_call: OpenCall, call: ToolJobs) -> JobList:
        return JobList(await self._jobs.jobs(open_call.program.principal, ended=call.ended))
