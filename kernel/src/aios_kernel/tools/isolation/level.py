"""What an isolation level is, and the road by which all of them run a process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, final

from aios_kernel.tools.confinement import UNSHARED, Confinement
from aios_kernel.tools.hosted import Isolation
from aios_kernel.tools.isolation.forkserver import ForkServer
from aios_kernel.tools.isolation.places import PATH
from aios_kernel.tools.isolation.process import Outcome, Request, run, run_on
from aios_kernel.tools.isolation.proxy import AllowList, serve
from aios_kernel.tools.isolation.uids import Uids

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Job:
    """A process to run.

    Attributes:
        argv: absolute path of the program, and its arguments; empty: the function that stdin names
            (`launcher.function`).
        env: variables beside PATH, LANG, HOME and TMPDIR.
        cwd: where it runs; empty: a new empty folder.
        stdin: what it reads.
        confinement: what it may use.
        time_s: seconds until it is killed.
    """

    argv: list[str] = field(default_factory=list[str])
    env: dict[str, str] = field(default_factory=dict[str, str])
    cwd: str = ""
    stdin: bytes = b""
    confinement: Confinement = UNSHARED
    time_s: float = _DAY_S


class Level(Protocol):
    """One isolation level of this machine."""

    name: ClassVar[Isolation]
    networks: ClassVar[bool]
    """Whether `Confinement.network` can be kept."""
    outlives: ClassVar[bool]
    """Whether a process can confine itself and outlive the kernel, as long jobs do: its group is all that it starts."""

    def check(self) -> None:
        """Raise Unsupported if the machine lacks the level."""
        ...

    def request(self, job: Job, uid: int | None) -> Request:
        """What the launcher is to do."""
        ...

    def program(self, uid: int | None, *, alone: bool = False) -> bytes:
        """The seccomp filter; `alone`: without a supervisor that finds what leaves the process group."""
        ...


@final
class Runner:
    """Runs jobs at one level."""

    def __init__(self, level: Level) -> None:
        self.level = level
        self._server = ForkServer()
        self._uids = Uids()

    def check(self) -> None:
        """Raise Unsupported if the machine lacks the level."""
        self._uids.check()
        self.level.check()

    async def run(self, job: Job) -> Outcome:
        """Run a job to its end; cancelled, all its processes are dead before this returns.

        Raises:
            ToolNotStarted: it could not be started.
            Busy: too many run.
        """
        with self._uids.lease() as uid:
            request = self.level.request(job, uid)
            return await run(
                self._server,
                request,
                stdin=job.stdin,
                program=self.level.program(uid),
                output_bytes=job.confinement.output_kb << 10,
                listening=serve(AllowList(job.confinement.network)) if request.listen else None,
            )

    async def run_on(self, job: Job, streams: Sequence[int]) -> Outcome:
        """`run` on descriptors for input, output, errors and result, which are closed here once the process has them.

        `stdin` of the job counts for nothing.
        """
        with contextlib.ExitStack() as held:
            try:
                uid = held.enter_context(self._uids.lease())
                request, program = self.level.request(job, uid), self.level.program(uid)
            except BaseException:
                for descriptor in streams:
                    os.close(descriptor)
                raise
            listening = serve(AllowList(job.confinement.network)) if request.listen else None
            return await run_on(self._server, request, streams, program=program, listening=listening)

    def alone(self, job: Job) -> tuple[Request, bytes]:
        """What a process that confines itself is to do, and its filter."""
        uid = self._uids.for_good()
        return self.level.request(job, uid), self.level.program(uid, alone=True)

    def server_cpu_s(self) -> float:
        """Processor seconds that the fork server has used; 0 before the first call."""
        return self._server.cpu_s()

    def stop(self) -> None:
        """End the fork server."""
        self._server.stop()


def environment(job: Job) -> dict[str, str]:
    """The whole environment of a job."""
    return {"PATH": PATH, "LANG": "C.UTF-8"} | job.env


def limits(confinement: Confinement) -> dict[str, int]:
    """The resource limits that every confined level sets."""
    return {
        "as": confinement.memory_mb << 20,
        "fsize": confinement.disk_mb << 20,
        "nofile": 1024,
        "core": 0,
    }
