"""The `tool.*` syscalls: grants for tools in the agent's process, and the tools that the kernel hosts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from aios_kernel import errors, syscalls
from aios_kernel.calls import OpenCall
from aios_kernel.process import ProcessTable, Program
from aios_kernel.scheduler.protocol import Event, ToolBegan, ToolEnded
from aios_kernel.syscalls import Ok, Result, ToolBegin, ToolEnd, ToolGrant, ToolInvoke, ToolList, Tools
from aios_kernel.tools import Caller, TimeLimit, ToolRequest, check_allowed, no_place
from aios_kernel.trace import Tracer

if TYPE_CHECKING:
    from aios_kernel.kernel import Handler
    from aios_kernel.managers import Managers


_LEAST_S = 0.001
"""Of a grant, when the run's time is over: its call is being ended."""


class ToolService:
    """Keeps the process table, the scheduler and the trace informed of who waits for which tool."""

    def __init__(
        self, managers: Managers, table: ProcessTable, observe: Callable[[Event], None], tracer: Tracer
    ) -> None:
        self._registry = managers.tools
        self._grants = managers.grants
        self._table = table
        self._observe = observe
        self._tracer = tracer

    def routes(self) -> dict[type, Handler]:
        """The handlers by syscall."""
        return {ToolBegin: self._begin, ToolEnd: self._end, ToolInvoke: self._invoke, ToolList: self._list}

    def expire(self, now: float) -> None:
        """End grants past their limit, so that a tool that hangs does not keep its program paused for ever."""
        for expired in self._grants.expired(now):
            for program in self._table.holding(expired.grant):
                self._ended(program, expired.grant, expired.name, now - expired.began_s, expired.error.code)

    def _begin(self, open_call: OpenCall, call: ToolBegin) -> ToolGrant | Coroutine[Any, Any, ToolGrant]:
        program, terms = open_call.program, open_call.program.terms
        left_s = None if terms.ends_at_s is None else max(terms.ends_at_s - time.monotonic(), _LEAST_S)
        if left_s is not None:
            call = msgspec.structs.replace(call, timeout_s=min(left_s, call.timeout_s or left_s))
        request = self._grants.checked(program.principal, call, allowed=terms.tools)
        run_s = terms.run_s if request.limit_s == left_s else None
        if not self._grants.slots.take_now(request.demand):
            return self._begin_later(open_call, request, run_s)
        grant = self._grants.begin(program.id, request, time.monotonic(), run_s=run_s)
        program.tools[grant.grant] = call.name
        self._observe(ToolBegan(program.id, call.name, request.expected_s))
        return grant

    async def _begin_later(self, open_call: OpenCall, request: ToolRequest, run_s: float | None) -> ToolGrant:
        """Wait for a place, paused on the tool as if it ran."""
        program, key, began = open_call.program, f"call-{open_call.id}", time.monotonic()
        span = TimeLimit.starting_now(request.limit_s)
        program.tools[key] = request.name
        self._observe(ToolBegan(program.id, request.name, request.expected_s))
        try:
            async with asyncio.timeout(span.left_s):
                await self._grants.slots.take(request.demand, program.id)
        except BaseException as error:
            self._unpause(program, key, request.name, began)
            if isinstance(error, TimeoutError):
                raise no_place(request.name, span.limit_s, request.demand.exclusive) from None
            raise
        del program.tools[key]
        left_s = max(span.left_s, _LEAST_S)
        grant = self._grants.begin(program.id, request, time.monotonic(), left_s=left_s, run_s=run_s)
        program.tools[grant.grant] = request.name
        return grant

    def _end(self, open_call: OpenCall, call: ToolEnd) -> Ok:
        seconds = self._grants.end(open_call.program.id, call, time.monotonic())
        name = open_call.program.tools.get(call.grant, "")
        self._ended(open_call.program, call.grant, name, seconds, "ok" if call.ok else errors.ToolError.code)
        return Ok()

    async def _invoke(self, open_call: OpenCall, call: ToolInvoke) -> Result:
        program, key, began = open_call.program, f"call-{open_call.id}", time.monotonic()
        check_allowed(call.name, program.terms.tools)
        program.tools[key] = call.name
        self._observe(ToolBegan(program.id, call.name, self._registry.expected_s(call.name)))
        try:
            return await self._registry.call(call, Caller(program.principal, program.agent, program.id))
        finally:
            self._unpause(program, key, call.name, began)

    def _unpause(self, program: Program, key: str, name: str, began_s: float) -> None:
        program.tools.pop(key, None)
        program.account.tool_s += time.monotonic() - began_s
        if program.finished_s is None:
            self._observe(ToolEnded(program.id, name, time.monotonic() - began_s))

    def _list(self, open_call: OpenCall, call: ToolList) -> Tools:
        return Tools(tools=self._registry.specs())

    def _ended(self, program: Program, grant: str, name: str, seconds: float, outcome: str) -> None:
        program.tools.pop(grant, None)
        program.account.tool_s += seconds
        self._observe(ToolEnded(program.id, name, seconds))
        now = time.time()
        self._tracer.add(
            syscalls.Span(
                program=program.id,
                agent=program.agent,
                framework=program.framework,
                syscall="tool.run",
                detail=name,
                outcome=outcome,
                queued_s=now - seconds,
                started_s=now - seconds,
                ended_s=now,
            )
        )
