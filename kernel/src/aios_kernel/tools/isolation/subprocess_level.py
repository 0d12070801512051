"""Level 1: a process under Landlock, seccomp and resource limits, forked from a warm interpreter."""

from __future__ import annotations

import tempfile
from typing import ClassVar, final

from aios_kernel.errors import Unsupported
from aios_kernel.tools.hosted import Isolation
from aios_kernel.tools.isolation import seccomp
from aios_kernel.tools.isolation.launcher import landlock
from aios_kernel.tools.isolation.level import Job, environment, limits
from aios_kernel.tools.isolation.places import FILES, FOLDERS, LOCALTIME, SYSTEM, of_python
from aios_kernel.tools.isolation.process import Request


@final
class Subprocess:
    """No sockets at all, a folder of its own to write in, and stated places to read."""

    name: ClassVar[Isolation] = "subprocess"
    networks: ClassVar[bool] = False
    outlives: ClassVar[bool] = True

    def check(self) -> None:
        """Raise Unsupported without seccomp, or with a Landlock that lets signals out."""
        found = landlock.abi()
        if found < landlock.LEAST_ABI:
            raise Unsupported(
                f"this machine has Landlock ABI {found}; level subprocess needs {landlock.LEAST_ABI} (Linux 6.12)",
                fix='boot a newer Linux with the Landlock module on (lsm=), or declare isolation = "sandbox"',
            )
        self.program(None)

    def request(self, job: Job, uid: int | None) -> Request:
        """The launcher's work: `launcher.tool` confines itself."""
        read = [*SYSTEM, *FILES, *FOLDERS, LOCALTIME, *job.confinement.read, *([] if job.argv else of_python())]
        if job.cwd:
            read.append(job.cwd)
        return Request(
            argv=job.argv,
            env=environment(job),
            cwd=job.cwd,
            folder=tempfile.gettempdir(),
            uid=uid,
            limits=limits(job.confinement) | {"nproc": job.confinement.processes},
            landlock={"read": read, "write": []},
            time_s=job.time_s,
        )

    def program(self, uid: int | None, *, alone: bool = False) -> bytes:
        """The filter without sockets."""
        return seccomp.among_others(own_user=uid is not None, one_session=alone)
