"""Programs from spawn to exit: the process table, mailboxes and those who wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from aios_kernel import errors
from aios_kernel.access import AccessManager, Subject, denied
from aios_kernel.access.redaction import redacted
from aios_kernel.calls import OpenCall
from aios_kernel.mailbox import Mailboxes
from aios_kernel.process import ProcessTable, Program, Standing
from aios_kernel.scheduler.protocol import Event, ProgramEnded, ToolBegan, ToolEnded
from aios_kernel.syscalls import (
    AgentExit,
    AgentPriority,
    AgentReceive,
    AgentSend,
    AgentSpawn,
    AgentWait,
    Count,
    KernelKill,
    KernelPs,
    Mail,
    Ok,
    ProgramInfo,
    Programs,
)

T = TypeVar("T")
MESSAGE = "message"
"""What the scheduler calls the tool that a program waits for when it waits for another agent."""


@dataclass(slots=True)
class AgentService:
    """The `agent.*` syscalls. `observe` tells the scheduler, `drop` frees what managers hold for a program.

    `standings` gives what programs have in the engine, `homes` the replica of each family.
    """

    observe: Callable[[Event], None]
    drop: Callable[[Program], None]
    access: AccessManager
    standings: Callable[[], Mapping[str, Standing]] = dict[str, Standing]
    homes: Callable[[], Mapping[str, str]] = dict[str, str]
    table: ProcessTable = field(default_factory=ProcessTable)
    mail: Mailboxes = field(default_factory=Mailboxes)
    open_calls: dict[str, set[OpenCall]] = field(default_factory=dict[str, set[OpenCall]])
    """Open syscalls by program."""
    _waiters: dict[str, set[asyncio.Future[None]]] = field(default_factory=dict[str, set[asyncio.Future[None]]])

    def spawn(self, call: AgentSpawn, principal: str, session: int) -> Program:
        """Register a program. Raises AccessDenied for a child that is another agent than its parent may start."""
        parent = self.table.alive(call.parent, principal) if call.parent else None
        if parent is not None:
            check_spawn(self.access, parent, call)
        group = call.group or (parent.group if parent is not None else principal)
        framework = call.framework or (parent.framework if parent is not None else "")
        subject = Subject(principal, group, call.agent, framework)
        if (budget := self.access.policy.budget(subject)) is not None:
            call = msgspec.structs.replace(call, budget=budget if call.budget is None else min(budget, call.budget))
        program = self.table.spawn(call, principal, session)
        program.contained = self.access.policy.contained(program.chain()[0])
        self.open_calls.setdefault(program.id, set())
        return program

    def exit(self, program: Program, error: str | None, *, keep: OpenCall | None = None) -> int:
        """End a program and its children: their open calls are cancelled, but `keep`. Gives how many ended."""
        if program.finished_s is not None:  # with its parent, a moment ago
            return 0
        family = self.table.family(program)
        error = None if error is None else redacted(error)  # listings show it to the principal's other agents
        for member in reversed(family):
            for call in list(self.open_calls.get(member.id, ())):
                if call is not keep:
                    call.fail(errors.Cancelled("the program has ended", fix="run it again"))
            self.table.finish(member, error)
            self.open_calls.pop(member.id, None)
            self.mail.discard(member.principal, member.id)
            self.drop(member)
            self.observe(ProgramEnded(member.id))
            for waiter in self._waiters.pop(member.id, ()):
                if not waiter.done():
                    waiter.set_result(None)
        return len(family)

    # --- syscalls ---------------------------------------------------------------------------------------------------

    def do_exit(self, open_call: OpenCall, call: AgentExit) -> Ok:
        """`agent.exit`."""
        self.exit(open_call.program, call.error, keep=open_call)
        return Ok()

    def do_send(self, open_call: OpenCall, call: AgentSend) -> Ok:
        """`agent.send`: to a running program's id, else to an agent's name (which need not run yet)."""
        sender = open_call.program
        if self.table.has_finished(call.to, sender.principal):
            raise errors.NotFound(
                f'program "{call.to}" has ended and reads no messages', fix="send to its agent's name"
            )
        taint = [*sender.taint]
        mail = Mail(sender=sender.agent, body=call.body, topic=call.topic, sent_s=time.time(), taint=taint)
        self.mail.put(sender.principal, call.to, mail)
        return Ok()

    async def do_receive(self, open_call: OpenCall, call: AgentReceive) -> Mail:
        """`agent.receive`: from the mailboxes of the caller's name and of this program."""
        program = open_call.program
        _check_timeout(call.timeout_s)
        take = self.mail.take(program.principal, [program.id, program.agent], call.topic, call.sender)
        what = f"a message from {call.sender or 'anyone'}" + (f' on "{call.topic}"' if call.topic else "")
        mail = await self._waiting(program, what, take, call.timeout_s)
        program.mark(mail.taint)
        return mail

    async def do_wait(self, open_call: OpenCall, call: AgentWait) -> ProgramInfo:
        """`agent.wait`."""
        _check_timeout(call.timeout_s)
        target = self.table.find(call.program, open_call.program.principal)
        if target.finished_s is None:
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiters = self._waiters.setdefault(target.id, set())
            waiters.add(ended)
            try:
                await self._waiting(open_call.program, f"the end of {target.agent}", ended, call.timeout_s)
            finally:
                waiters.discard(ended)
        if not target.contained:
            open_call.program.mark(target.taint)  # what it says of its end is text of its own
        return target.info()

    def do_priority(self, open_call: OpenCall, call: AgentPriority) -> Ok:
        """`agent.priority`: of the caller or one of its children, from their next call on."""
        target = open_call.program
        if call.program is not None:
            target = self.table.alive(call.program, target.principal)
            if target not in self.table.family(open_call.program):
                raise errors.AccessDenied(
                    f'program "{call.program}" is no child of the caller', fix="let its own agent change it"
                )
        target.priority = call.priority
        return Ok()

    def do_ps(self, open_call: OpenCall, call: KernelPs) -> Programs:
        """`kernel.ps`."""
        rows = [*self.table.all(open_call.program.principal, finished=call.finished)]
        open_call.program.look_at(rows)
        standings, homes = self.standings(), self.homes()
        return Programs(
            programs=[
                row.info(standings.get(row.id), self._computed(row), homes.get(row.root or row.id, "")) for row in rows
            ]
        )

    def _computed(self, program: Program) -> int:
        """Tokens that went through the model for a program's open calls."""
        calls = self.open_calls.get(program.id, ())
        return sum(generation.computed for call in calls for generation in call.generations)

    def do_kill(self, open_call: OpenCall, call: KernelKill) -> Count:
        """`kernel.kill`: a program's id, or an agent's name."""
        principal = open_call.program.principal
        targets = self.table.named(call.target, principal) or [self.table.alive(call.target, principal)]
        return Count(count=sum(self.exit(target, "killed") for target in targets if target.finished_s is None))

    async def _waiting(self, program: Program, what: str, wait: Awaitable[T], timeout_s: float | None) -> T:
        program.waits.append(what)
        self.observe(ToolBegan(program.id, MESSAGE))
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                return await wait
        except TimeoutError as error:
            raise errors.DeadlineExceeded(
                f"{what} did not come within {timeout_s:g} s", fix="pass a longer timeout_s"
            ) from error
        finally:
            program.waits.remove(what)
            waited = time.monotonic() - began
            program.account.message_s += waited
            if program.finished_s is None:
                self.observe(ToolEnded(program.id, MESSAGE, waited))


def check_spawn(access: AccessManager, parent: Program, call: AgentSpawn) -> None:
    """Return if a program may start this child: one of its own agent and group, or of others that it may start.

    Raises AccessDenied.
    """
    chain, wanted = parent.chain(), [f"spawn/agent/{call.agent.partition('/')[0]}"]
    if call.agent.partition("/")[0] == chain[0].root:
        wanted = []
    if call.group is not None and call.group != parent.group:
        wanted.append(f"spawn/group/{call.group}")
    for resource in wanted:
        decision = access.decide(chain, "spawn", resource)
        if decision.effect != "allow":
            raise denied(chain, "spawn", resource, decision)


def _check_timeout(timeout_s: float | None) -> None:
    """Refuse what is no time; a NaN would spoil the order of the loop's timers."""
    if timeout_s is not None and not timeout_s >= 0:
        raise errors.InvalidRequest(f"timeout_s is {timeout_s}; it must be 0 or more", fix="change timeout_s")
