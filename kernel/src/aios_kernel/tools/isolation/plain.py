"""Level 0 for commands: a process that is trusted, with nothing between it and the machine but a time limit."""

from __future__ import annotations

import tempfile
from typing import ClassVar, final

from aios_kernel.tools.hosted import Isolation
from aios_kernel.tools.isolation.level import Job, environment
from aios_kernel.tools.isolation.process import Request


@final
class Plain:
    """Clean environment, folder of its own, killed whole; otherwise the kernel's own rights."""

    name: ClassVar[Isolation] = "trusted"
    networks: ClassVar[bool] = True
    outlives: ClassVar[bool] = True

    def check(self) -> None:
        """Every machine has it."""

    def request(self, job: Job, uid: int | None) -> Request:
        """As the kernel's user, whatever `uid`."""
        del uid
        return Request(
            argv=job.argv, env=environment(job), cwd=job.cwd, folder=tempfile.gettempdir(), time_s=job.time_s
        )

    def program(self, uid: int | None, *, alone: bool = False) -> bytes:
        """No filter."""
        return b""
