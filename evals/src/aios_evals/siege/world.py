"""A real kernel in this process and agents of many principals in it, each call on the road that a socket's takes."""

from __future__ import annotations

import asyncio
import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import msgspec

from aios_kernel.config import Config
from aios_kernel.kernel import Kernel
from aios_kernel.session import Session
from aios_kernel.syscalls import AgentSpawn, Delta, Done, Failed, Request, Syscall

Answer: TypeAlias = Done | Failed

CANARY = re.compile(rb"canary-[0-9a-f]{20}")
"""What the attackers look for. They are never given one; hints (`hint-...`) they may know."""


@dataclass(slots=True, eq=False)
class Agent:
    """An agent of a principal with a session of its own.

    `own` are the canaries that it may see. Without a `program` it is a terminal, which names no agent.
    """

    kernel: Kernel
    principal: str
    name: str
    program: str
    group: str | None = None
    framework: str = ""
    own: set[bytes] = field(default_factory=set[bytes])
    session: Session = field(init=False)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.session = self.kernel.connect(self.principal, f"{self.name}-client")

    async def begin(self) -> None:
        """Register its program."""
        answer = await self.ask(
            AgentSpawn(program=self.program, agent=self.name, group=self.group, framework=self.framework)
        )
        assert isinstance(answer, Done), answer

    async def ask(self, call: Syscall, program: str | None = None) -> Answer:
        """The frame that ends a syscall, made as this program or one that is named; cancelled with its task."""
        ended: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def reply(frame: Delta | Answer) -> None:
            if not isinstance(frame, Delta) and not ended.done():
                ended.set_result(frame)

        named = None if isinstance(call, AgentSpawn) else program or self.program or None
        number = next(self._numbers)
        self.session.request(Request(id=number, call=call, program=named), reply)
        try:
            return await ended
        finally:
            self.session.cancel(number)  # of no consequence for one that has ended

    async def do(self, call: Syscall) -> Done:
        """As `ask`, for what must succeed."""
        answer = await self.ask(call)
        assert isinstance(answer, Done), answer
        return answer


def canaries_in(answer: Answer) -> set[bytes]:
    """The canaries in a frame, bytes of files included."""
    return set(CANARY.findall(msgspec.msgpack.encode(answer)))


def quick(home: Path) -> Config:
    """A kernel with the fake model, quick embeddings and exact vectors."""
    return Config(kernel="inprocess", home=str(home), model="fake", embedder="hash", vectors="exact")
