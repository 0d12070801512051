"""The syscalls of long jobs: whose they are; a program that waits for its job is paused on the tool, as in a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from aios_kernel.access import Decision, denied
from aios_kernel.access.manager import NOTHING
from aios_kernel.calls import OpenCall
from aios_kernel.errors import AccessDenied, InvalidRequest
from aios_kernel.scheduler.protocol import Event, ToolBegan, ToolEnded
from aios_kernel.syscalls import JobList, ToolCancel, ToolJob, ToolJobs, ToolSubmit, ToolWait
from aios_kernel.tools import Caller, JobManager, JobRow, check_allowed, job_told

if TYPE_CHECKING:
    from aios_kernel.kernel import Handler
    from aios_kernel.managers import Managers
    from aios_kernel.process import Program


class JobService:
    """`tool.submit`, `tool.wait`, `tool.cancel` and `tool.jobs`.

    A job is its agent's and of the agents above the run that submitted it. Others of the principal need `read` on
    `job/<agent>` to see it and wait for it, `write` to end it; a terminal, which names no agent, has both.

    Args:
        managers: the jobs, the tools, and who may what.
        observe: tells the scheduler who waits.
        told: hears which programs are given what tools said.
    """

    def __init__(
        self, managers: Managers, observe: Callable[[Event], None], told: Callable[[Program, str], None]
    ) -> None:
        self._jobs: JobManager = managers.jobs
        self._registry = managers.tools
        self._access = managers.access
        self._observe = observe
        self._told = told

    def routes(self) -> dict[type, Handler]:
        """The handlers by syscall."""
        return {ToolSubmit: self._submit, ToolWait: self._wait, ToolCancel: self._cancel, ToolJobs: self._list}

    async def _submit(self, open_call: OpenCall, call: ToolSubmit) -> ToolJob:
        program = open_call.program
        check_allowed(call.name, program.terms.tools)
        return await self._jobs.submit(call, caller_of(program))

    async def _wait(self, open_call: OpenCall, call: ToolWait) -> ToolJob:
        if call.timeout_s is not None and not call.timeout_s >= 0:
            raise InvalidRequest(f"timeout_s is {call.timeout_s}; it must be 0 or more", fix="change timeout_s")
        if call.position is not None and call.position < 0:
            raise InvalidRequest(f"position is {call.position}", fix="give the position of the last answer, or 0")
        program = open_call.program
        row = await self._found(program, call.job, "read")
        self._told(program, row.tool)
        if row.over or call.timeout_s == 0:
            return await self._jobs.wait(program.principal, call)
        began_s = self._pause(open_call, row)
        try:
            job = await self._jobs.wait(program.principal, call)
        except BaseException:
            self._resume(open_call, row, None, began_s)
            raise
        self._resume(open_call, row, job, began_s)
        self._check(program, row, "read")  # what was granted may have been taken back meanwhile
        return job

    def _pause(self, open_call: OpenCall, row: JobRow) -> float:
        """The program of a call waits for a job from now on: it is parked and accounted as in a call of the tool."""
        program, now_s = open_call.program, time.monotonic()
        waited_s = now_s - program.jobs.setdefault(row.id, now_s)
        program.tools[f"call-{open_call.id}"] = row.tool
        self._observe(ToolBegan(program.id, row.tool, self._rest_s(row, waited_s)))
        return now_s

    def _resume(self, open_call: OpenCall, row: JobRow, job: ToolJob | None, began_s: float) -> None:
        """The wait is over. What the tool takes is learned at its end only, and from the first wait on.

        For lines alone the program stays parked: it prints them and waits on, unless it calls the model.
        """
        program, now_s = open_call.program, time.monotonic()
        program.tools.pop(f"call-{open_call.id}", None)
        program.account.tool_s += now_s - began_s
        if program.finished_s is not None or (job is not None and job.ended_s is None and job.lines):
            return
        is_over = job is not None and job.ended_s is not None
        since_s = program.jobs.pop(row.id, began_s) if is_over else None
        self._observe(ToolEnded(program.id, row.tool, None if since_s is None else now_s - since_s))

    def _rest_s(self, row: JobRow, waited_s: float) -> float | None:
        """How long a job is expected to go on; one that is beyond what its tool says, as long again."""
        declared_s = self._registry.expected_s(row.tool)
        if declared_s is None:
            return waited_s or None
        ran_s = 0.0 if row.started_s is None else max(0.0, time.time() - row.started_s)
        return declared_s - ran_s if declared_s > ran_s else ran_s

    async def _cancel(self, open_call: OpenCall, call: ToolCancel) -> ToolJob:
        program = open_call.program
        row = await self._found(program, call.job, "write")
        self._told(program, row.tool)  # the words of its error are the tool's, perhaps
        return await self._jobs.cancel(program.principal, call.job)

    async def _list(self, open_call: OpenCall, call: ToolJobs) -> JobList:
        program = open_call.program
        rows = await self._jobs.jobs(program.principal, ended=call.ended)
        seen = [row for row in rows if self._refusal(program, row, "read") is None]
        for row in seen:
            if row.error:
                self._told(program, row.tool)
        return JobList([job_told(row) for row in seen])

    # --- whose they are ---------------------------------------------------------------------------------------------

    async def _found(self, program: Program, id: str, right: Literal["read", "write"]) -> JobRow:
        """A job of the principal that the program may use. Raises NotFound, AccessDenied."""
        row = await self._jobs.find(program.principal, id)
        self._check(program, row, right)
        return row

    def _check(self, program: Program, row: JobRow, right: Literal["read", "write"]) -> None:
        refusal = self._refusal(program, row, right)
        if refusal is not None:
            raise _denied(program, row, right, refusal)

    def _refusal(self, program: Program, row: JobRow, right: Literal["read", "write"]) -> Decision | None:
        """Why a program may not use a job; None: it may. A rule about the agent that submitted it wins."""
        chain, tainted = program.chain(), bool(program.taint)
        first: Decision | None = None
        for owner in row.owners:
            decision = self._access.decide(chain, right, f"job/{owner}", tainted=tainted)
            if decision.effect == "allow":
                return None
            if decision.rule is not NOTHING:
                return decision
            first = first or decision
        return None if program.terminal else first


def _denied(program: Program, row: JobRow, right: Literal["read", "write"], refusal: Decision) -> AccessDenied:
    owner = row.owners[0]
    if refusal.rule is not NOTHING:
        return denied(program.chain(), right, f"job/{owner}", refusal)
    grant = f'access.grant with to="{program.chain()[0].root}", resource="job/{owner}", rights=["{right}"]'
    return AccessDenied(
        f'agent "{program.agent}" may not {right} a job of agent "{owner}"',
        agent=program.agent,
        fix=f'let agent "{owner}" call {grant}; a person sees all jobs by `aios tools jobs`',
    )


def caller_of(program: Program) -> Caller:
    """Who calls a tool, and the other agents that it runs below."""
    chain = program.chain()
    above = dict.fromkeys(subject.root for subject in chain if subject.root != chain[0].root)
    return Caller(program.principal, program.agent, program.id, tuple(above))
