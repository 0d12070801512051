"""A kernel process that may be killed at any moment, or be told by its failpoints to fail."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import msgspec

from aios_kernel import errors
from aios_kernel.client import Connection, connect, kernel_command, kernel_environment, kernel_input
from aios_kernel.config import Config
from aios_kernel.failpoints import ENVIRONMENT, Fault
from aios_kernel.syscalls import Failed

_START_S = 60.0


class Died(Exception):
    """The process ended before it was ready."""


def config_of(home: Path, **settings: Any) -> Config:
    """A kernel on the fake engine, with vectors that cost nothing and are all indexed, on this data directory."""
    plain = Config(home=str(home), model="fake", embedder="hash", vectors="exact", index_from=0, kv_host_bytes=1 << 26)
    return msgspec.structs.replace(plain, **settings)


@final
class Victim:
    """A real kernel process on a data directory.

    Args:
        config: its configuration.
        faults: at its failpoints, from the start on; `fault` changes them while it runs.
        environment: of the process, beside the usual one.
    """

    def __init__(
        self,
        config: Config,
        faults: Mapping[str, Fault] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.home = Path(config.home)
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._plan = self.home / "failpoints.json"
        self.fault(faults or {})
        self._environment = dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None
        self.ready_s = 0.0

    def fault(self, faults: Mapping[str, Fault]) -> None:
        """What happens at which points from now on."""
        fresh = self._plan.with_suffix(".part")
        fresh.write_bytes(msgspec.json.encode(dict(faults)))
        fresh.replace(self._plan)

    @property
    def environment(self) -> dict[str, str]:
        """With the failpoints switched on."""
        return kernel_environment() | self._environment | {ENVIRONMENT: str(self._plan)}

    def start(self) -> float:
        """Start it and wait until it serves; gives the seconds that took.

        Raises:
            Died: it ended without a word, as of a kill.
            AiosError: it said why it does not serve.
        """
        ours, theirs = os.pipe()
        began = time.monotonic()
        with (self.home / "kernel.out").open("ab") as output, os.fdopen(ours, "rb") as reports:
            self.process = subprocess.Popen(
                [*kernel_command(self.config, forever=True), "--report-fd", str(theirs)],
                stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=(theirs,), env=self.environment,
            )  # fmt: skip
            os.close(theirs)
            self._configure()
            ready, _, _ = select.select([reports], [], [], _START_S)
            report = reports.read() if ready else b""
        self.ready_s = time.monotonic() - began
        if report == b"ready":
            return self.ready_s
        if not ready:
            self.kill()
            raise TimeoutError(f"the kernel neither reported nor ended within {_START_S:g} s; see {self.home}")
        self.wait(10.0)
        if report:
            failed = msgspec.msgpack.decode(report, type=Failed)
            raise errors.from_code(failed.code, failed.message, fix=failed.fix)
        raise Died

    def _configure(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            with self.process.stdin as stdin:
                stdin.write(kernel_input(self.config))
        except BrokenPipeError:
            pass  # it has ended already

    def connect(self, client: str = "") -> Connection:
        """A connection to it."""
        return connect(self.config, client=client, start=False)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; whether it came in time."""
        assert self.process is not None
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.process is not None and self.process.poll() == -signal.SIGKILL

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None
