"""A server that the kernel starts, watches and starts again; it ends with the kernel."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aios_kernel.errors import AiosError, EngineUnavailable

_log = logging.getLogger(__name__)
_POLL_S = 0.2
_GRACE_S = 20.0
_TRIES = 3
"""Deaths one after the other, none of them after `_LONG_S` of service, before it is given up."""
_LONG_S = 60.0
_TAIL_BYTES = 1500


class ChildServer:
    """One child process, and its successors. Its methods may be called from any thread.

    Args:
        command: what starts it; it ends when its standard input does.
        environment: of it.
        log: file that its output goes to; a new life is appended.
        healthy: whether it answers yet.
        timeout_s: how long it may take until it does.
        name: as messages call it.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        log: Path,
        healthy: Callable[[], bool],
        timeout_s: float,
        name: str,
    ) -> None:
        self._command, self._environment = [*command], {**environment}
        self._log_file, self._healthy, self._timeout_s, self._name = log, healthy, timeout_s, name
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = False
        self.lives = 0
        """How often it was started."""
        self.failure: AiosError | None = None
        """Why it is not started again; None: it is up, or on its way."""
        self.death = ""
        """How the last one of them ended, in words."""
        self.ready = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name=f"aios-{name}", daemon=True)

    def start(self) -> None:
        """Start it and wait until it answers. Raises EngineUnavailable, with the end of its log."""
        try:
            self._spawn()
            self._await_health()
        except BaseException:
            self.close()
            raise
        self._watcher.start()

    @property
    def pid(self) -> int:
        """Of the process that runs, or ran last."""
        return self._process.pid if self._process is not None else 0

    def ended(self) -> str | None:
        """How the process ended, in words; None: it runs."""
        process = self._process
        code = process.poll() if process is not None else None
        if process is None or code is None:
            return None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{self._name} (pid {process.pid}) {how}"

    def close(self) -> None:
        """End it and all that it started, within `_GRACE_S` and a moment."""
        self._closing = True
        self.ready.clear()
        self._end()
        if self._watcher.is_alive():
            self._watcher.join()

    def _spawn(self) -> None:
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            try:
                self._process = subprocess.Popen(
                    self._command,
                    env=self._environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise EngineUnavailable(f"{self._name} cannot be started: {error}", fix="aios doctor") from error
        self.lives += 1

    def _await_health(self) -> None:
        ends_at = time.monotonic() + self._timeout_s
        while not self._healthy():
            ended = self.ended()
            if ended is not None:
                raise self._unavailable(f"{ended} before it answered")
            if self._closing or time.monotonic() > ends_at:
                raise self._unavailable(f"{self._name} did not answer within {self._timeout_s:g} s")
            time.sleep(_POLL_S)
        self.failure = None
        self.ready.set()

    def _watch(self) -> None:
        """Wait for its death; start it again."""
        deaths = 0
        while not self._closing:
            began = time.monotonic()
            assert self._process is not None
            self._process.wait()
            self.ready.clear()
            if self._closing:
                return
            deaths = 1 if time.monotonic() - began > _LONG_S else deaths + 1
            self.death = self.ended() or ""
            _log.error("%s; its log is %s", self.death, self._log_file)
            self._end()  # what is left of its own children
            if not self._again(deaths):
                return

    def _again(self, deaths: int) -> bool:
        """Whether it is up again."""
        while deaths <= _TRIES and not self._closing:
            _log.warning("starting %s again", self._name)
            try:
                self._spawn()
                self._await_health()
            except AiosError as error:
                _log.error("%s", error.message)
                self._end()
                deaths += 1
            else:
                _log.warning("%s is up again, pid %s", self._name, self.pid)
                return True
        self.failure = self._unavailable(f"{self.ended() or self._name + ' does not start'}; it is not started again")
        return False

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads its group, whose last members may outlive it
        process.wait()

    def _unavailable(self, what: str) -> EngineUnavailable:
        return EngineUnavailable(f"{what}: {self._tail()}", fix=f"look into {self._log_file}")

    def _tail(self) -> str:
        try:
            data = self._log_file.read_bytes()[-_TAIL_BYTES:]
        except OSError:
            return "it left no log"
        return " ".join(data.decode(errors="replace").split()) or "it said nothing"
