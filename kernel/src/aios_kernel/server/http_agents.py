"""Agents that come by HTTP: who calls, the program it runs as, and its open requests."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from dataclasses import dataclass

from aios_kernel import errors
from aios_kernel.calls import Reply
from aios_kernel.kernel import Kernel
from aios_kernel.process import NAMELESS
from aios_kernel.syscalls import (
    AgentExit,
    AgentSpawn,
    Delta,
    Done,
    Failed,
    LlmDelta,
    Priority,
    Request,
    Result,
    Syscall,
)

_IDLE_S = 300.0
"""HTTP has no end of a run: an agent that has not called for so long is taken to have finished."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request says it comes from, its principal proved by the token."""

    principal: str
    agent: str = NAMELESS
    priority: Priority = "normal"
    group: str | None = None
    program: str | None = None
    """Tells several runs of one agent apart."""


class Talk:
    """One open syscall: its deltas, and at last its result."""

    def __init__(self, agent: HttpAgent, call: Syscall) -> None:
        self._agent = agent
        self._frames: asyncio.Queue[Delta | Done | Failed] = asyncio.Queue()
        self._number = agent.open(call, self._frames.put_nowait)

    def cancel(self) -> None:
        """Stop it, if it is not over; `next` then raises Cancelled."""
        self._agent.session.cancel(self._number)

    async def next(self) -> LlmDelta | Result:
        """The next delta, or the result, which is the last. Raises the AiosError that the syscall failed with."""
        frame = await self._frames.get()
        if isinstance(frame, Failed):
            raise _raised(frame)
        return frame.delta if isinstance(frame, Delta) else frame.result

    async def result(self) -> Result:
        """The result, without the deltas before it."""
        while isinstance(piece := await self.next(), LlmDelta):
            pass
        return piece


class HttpAgent:
    """One agent's program in the kernel, with a session of its own."""

    def __init__(self, kernel: Kernel, caller: Caller) -> None:
        """Register the program. Raises what `agent.spawn` fails with."""
        self.caller = caller
        self.session = kernel.connect(caller.principal, "http")
        self._kernel = kernel
        self._numbers = itertools.count(1)
        self._open = 0
        self._used_s = time.monotonic()
        self._program: str | None = None
        self._register(_program_id(caller.program))

    def _register(self, program: str) -> None:
        caller, answers = self.caller, list[Delta | Done | Failed]()
        call = AgentSpawn(
            program=program, agent=caller.agent, framework="http", priority=caller.priority, group=caller.group
        )
        self.open(call, answers.append)  # answered at once: the process table is at hand
        if isinstance(answers[0], Failed):
            self.session.close()
            raise _raised(answers[0])
        self._program = program

    def open(self, call: Syscall, reply: Reply) -> int:
        """Start a syscall of this agent."""
        number = next(self._numbers)
        self._open += 1
        self._used_s = time.monotonic()

        def counted(frame: Delta | Done | Failed) -> None:
            if not isinstance(frame, Delta):
                self._open -= 1
                self._used_s = time.monotonic()
            reply(frame)

        self.session.request(Request(id=number, call=call, program=self._program), counted)
        return number

    @property
    def idle_s(self) -> float:
        """Seconds since its last call ended; 0 while one is open."""
        return 0.0 if self._open else time.monotonic() - self._used_s

    @property
    def alive(self) -> bool:
        """Whether its program still runs: `aios kill` may have ended it."""
        return any(row.id == self._program for row in self._kernel.agents.table.of_session(self.session.number))

    def finish(self) -> None:
        """End the program in good order."""
        if self.alive:
            self.open(AgentExit(), _ignore)
        self.session.close()


class HttpAgents:
    """The agents that call by HTTP. Calls that say the same of
    themselves belong to one program for as long as they keep coming.
    """

    def __init__(self, kernel: Kernel, idle_s: float = _IDLE_S) -> None:
        self._kernel = kernel
        self._idle_s = idle_s
        self._agents: dict[Caller, HttpAgent] = {}
        self._sweeper = kernel.loop.call_later(idle_s, self._sweep)

    def ask(self, caller: Caller, call: Syscall) -> Talk:
        """Start a syscall in the caller's name. Raises what registering its program fails with."""
        agent = self._agents.get(caller)
        if agent is None or not agent.alive:
            agent = self._agents[caller] = HttpAgent(self._kernel, caller)
        return Talk(agent, call)

    def close(self) -> None:
        """Cancel what is open and end all programs."""
        self._sweeper.cancel()
        for agent in self._agents.values():
            agent.finish()
        self._agents.clear()

    def _sweep(self) -> None:
        for caller, agent in list(self._agents.items()):
            if agent.idle_s >= self._idle_s:
                del self._agents[caller]
                agent.finish()
        self._sweeper = self._kernel.loop.call_later(self._idle_s / 4, self._sweep)


def _program_id(name: str | None) -> str:
    """An id of its own for every program, which begins with the name that the caller gave it."""
    return uuid.uuid4().hex[:16] if name is None else f"{name}.{uuid.uuid4().hex[:8]}"


def _ignore(frame: Delta | Done | Failed) -> None:
    """Nobody waits for this answer."""


def _raised(frame: Failed) -> errors.AiosError:
    return errors.from_code(
        frame.code,
        frame.message,
        agent=frame.agent,
        syscall=frame.syscall,
        fix=frame.fix,
        retry_after_s=frame.retry_after_s,
    )
