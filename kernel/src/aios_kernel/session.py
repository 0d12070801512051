"""A connection of a principal: its programs and its open requests."""

from __future__ import annotations

import itertools
import uuid
from typing import TYPE_CHECKING

from aios_kernel import errors
from aios_kernel.bookkeeping import resource_of
from aios_kernel.calls import OpenCall, Reply, failed
from aios_kernel.frames import Unread
from aios_kernel.process import Program
from aios_kernel.syscalls import AgentSpawn, Request, name_of

if TYPE_CHECKING:
    from aios_kernel.kernel import Kernel


class Session:
    """One connection of a principal: its programs and its open requests. Closing it frees both."""

    _numbers = itertools.count(1)

    def __init__(self, kernel: Kernel, principal: str, client: str) -> None:
        self.principal = principal
        self.number = next(self._numbers)
        self.client = client or "client"
        self._kernel = kernel
        self._open: dict[int, OpenCall] = {}
        self._own: Program | None = None
        self._closed = False

    def request(self, request: Request, reply: Reply) -> None:
        """Start a syscall; `reply` gets its frames, exactly one of them `Done` or `Failed`."""
        if self._closed:
            gone = errors.Cancelled("the connection is being closed")
            reply(failed(request.id, gone, None, name_of(request.call)))
            return
        try:
            if request.id in self._open:
                raise errors.ProtocolError(f"request {request.id} is open already")
            full = self._kernel.gate.refusal(name_of(request.call))
            if full is not None:
                raise full
            program = self._program_of(request)
        except errors.AiosError as error:
            name = name_of(request.call)
            self._kernel.refused(self, name, request.program or "", resource_of(request.call), error)
            reply(failed(request.id, error, None, name))
            return
        open_call = OpenCall(request.id, request.call, program, reply, self._ended)
        self._open[request.id] = open_call
        self._kernel.submit(open_call, request.timeout_s)

    def refuse(self, request: Unread, reply: Reply) -> None:
        """End a request that was not read with its error."""
        if not self._closed:
            self._kernel.refused(self, request.syscall, request.program, "", request.error)
        program = self._kernel.agents.table.known(request.program)
        agent = program.agent if program is not None and program.principal == self.principal else None
        reply(failed(request.id, request.error, agent, request.syscall))

    def cancel(self, number: int) -> None:
        """Stop an open request; it ends with `Cancelled`."""
        open_call = self._open.get(number)
        if open_call is not None:
            self._kernel.end_early(open_call, errors.Cancelled("the caller cancelled it"))

    def close(self, why: str = "its client has gone") -> None:
        """Cancel its requests and end its programs; further requests are refused."""
        if self._closed:
            return
        self._closed = True
        for open_call in list(self._open.values()):
            self._kernel.end_early(open_call, errors.Cancelled(why))
        for program in self._kernel.agents.table.of_session(self.number):
            # The session's own program (a bench, `aios ps`) did nothing wrong by hanging up.
            self._kernel.agents.exit(program, None if program is self._own else why)
        self._kernel.sessions.discard(self)

    def _program_of(self, request: Request) -> Program:
        agents = self._kernel.agents
        if isinstance(request.call, AgentSpawn):
            return agents.spawn(request.call, self.principal, self.number)
        if request.program is not None:
            return agents.table.alive(request.program, self.principal)
        if self._own is None or self._own.finished_s is not None:
            call = AgentSpawn(program=uuid.uuid4().hex[:16], agent=self.client.replace("/", "_"))
            self._own = agents.spawn(call, self.principal, self.number)
            self._own.terminal = True
        return self._own

    def _ended(self, open_call: OpenCall, outcome: str) -> None:
        self._open.pop(open_call.id, None)
        self._kernel.ended(open_call, outcome)
