"""The process of a long job, as the kernel sees it: a folder of files, and a supervisor that may outlive the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final, Literal, final

import msgspec

from aios_kernel.errors import ToolNotStarted
from aios_kernel.tools import supervisor
from aios_kernel.tools.hosted import Launch

MAX_BYTES: Final = 256 * 1024 * 1024
"""What a job may print in all; one that prints more is ended."""
_SHOWN_BYTES: Final = 4 * 1024 * 1024
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH")
"""What an interpreter may need to start."""
_LINES_BYTES: Final = 64 * 1024


class JobExit(msgspec.Struct, frozen=True):
    """How a job ended, as its supervisor wrote it down."""

    status: int | None
    reason: Literal["exited", "timeout", "cancelled", "too_much", "not_started"]
    error: str
    began_s: float
    ended_s: float


@final
class JobProcess:
    """The files and the supervisor of one run of a job.

    Args:
        folder: below the data directory; its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: subprocess.Popen[bytes] | None = None

    def start(self, launch: Launch, timeout_s: float) -> None:
        """Start the supervisor; blocks for as long as a fork takes.

        Raises:
            ToolNotStarted: there is no process to be had, or no room for its files.
        """
        plan = msgspec.structs.asdict(launch) | {"timeout_s": timeout_s, "max_bytes": MAX_BYTES}
        try:
            self._folder.mkdir(mode=0o700, parents=True)
            with open(os.open(self._folder / "launch.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(msgspec.json.encode(plan))
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, str(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                cwd="/",
            )
        except OSError as error:
            raise ToolNotStarted(f"no process for the job: {error}", fix="wait for others to end") from error
        self._started = process
        threading.Thread(target=process.wait, name="aios-job-reaper", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether there is a supervisor: one that this kernel has started, or one that holds the folder."""
        if self._started is not None:
            return self._started.poll() is None
        return self._held()

    def _held(self) -> bool:
        try:
            with (self._folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def give_up(self) -> bool:
        """Keep a supervisor that has not begun from beginning; False when it has begun."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # also one that is not even started
        try:
            os.close(os.open(self._folder / "begun", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        return True

    def exit(self) -> JobExit | None:
        """How the job ended, if it has."""
        try:
            return msgspec.json.decode((self._folder / "exit.json").read_bytes(), type=JobExit)
        except (OSError, msgspec.DecodeError):
            return None

    def cancel(self) -> bool:
        """Ask the supervisor to end the job; whether it has been asked."""
        if not (self._folder / "pid").exists() or (handle := self._handle()) is None:
            return False
        try:
            if not self._held():  # while it is, the number is the supervisor's and nobody else's
                return False
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        except OSError:
            return False
        finally:
            os.close(handle)
        return True

    @contextlib.contextmanager
    def watched(self, over: Callable[[], None]) -> Generator[bool]:
        """`over` is called on the running loop when the supervisor has ended; gives whether that can be heard here."""
        handle = self._handle()
        if handle is None:
            yield False
            return
        loop = asyncio.get_running_loop()

        def heard() -> None:
            loop.remove_reader(handle)
            over()

        loop.add_reader(handle, heard)
        try:
            yield True
        finally:
            loop.remove_reader(handle)
            os.close(handle)

    def _handle(self) -> int | None:
        """A descriptor of the supervisor's process."""
        try:
            pid = self._started.pid if self._started is not None else int((self._folder / "pid").read_text())
            return os.pidfd_open(pid)
        except (AttributeError, OSError, ValueError):  # no Linux, or no such process
            return None

    def output(self) -> str:
        """What the job printed, at most its last 4 MiB."""
        return _tail(self._folder / "output").decode(errors="replace")

    def lines(self, position: int) -> tuple[list[str], int]:
        """Whole lines of what the job printed, as they came, from a byte of its log on; and where the next begin."""
        data = b""
        with contextlib.suppress(OSError), (self._folder / "log").open("rb") as file:
            file.seek(position)
            data = file.read(_LINES_BYTES)
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and len(data) == _LINES_BYTES:  # a line that is longer than all that
            whole = data
        return whole.decode(errors="replace").splitlines(), position + len(whole)

    def keep(self, output: str) -> None:
        """Take this for what the job printed: somebody else has told."""
        (self._folder / "output").write_text(output, encoding="utf-8")

    def remove(self) -> None:
        """Delete the files."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _SHOWN_BYTES))
            data = file.read()
    except OSError:
        return b""
    if size <= _SHOWN_BYTES:
        return data
    return f"[{size - _SHOWN_BYTES:,} bytes before this are left out]\n".encode() + data
