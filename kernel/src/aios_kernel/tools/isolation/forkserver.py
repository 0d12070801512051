"""The kernel's end of the fork server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import final

from aios_kernel.errors import ToolNotStarted

FOLDER = str(Path(__file__).parent)
"""Where the launcher package lies."""

_START = "import sys; sys.path.insert(0, {folder!r}); from launcher.server import main; del sys.path[0]; main()"


@final
class ForkServer:
    """Starts the server at the first call and again when it has gone; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def launch(self, descriptors: Sequence[int]) -> None:
        """Hand over the descriptors of a call (`launcher.supervisor.supervise`).

        Raises:
            ToolNotStarted: the server cannot be started.
        """
        with self._lock:
            if self._server is None or not self._server.send(descriptors):
                self.stop()
                self._server = _Server()
                if not self._server.send(descriptors):
                    raise ToolNotStarted("the fork server for tools does not start", fix="look at the kernel's log")

    def cpu_s(self) -> float:
        """Processor seconds of the server that runs now."""
        if self._server is None:
            return 0.0
        return int(Path(f"/proc/{self._server.pid}/schedstat").read_text().split()[0]) / 1e9

    def stop(self) -> None:
        """End the server; calls that run go on. It also ends with this process."""
        if self._server is not None:
            self._server.stop()
            self._server = None


class _Server:
    """One server process."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-I", "-S", "-c", _START.format(folder=FOLDER)],
                    {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
                    file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)],
                    setsigmask=[],
                    setsigdef=[signal.SIGINT, signal.SIGTERM],
                )
            except OSError as error:
                ours.close()
                raise ToolNotStarted(f"the fork server for tools does not start: {error}") from error
        self.pid = pid
        self._descriptor = ours.detach()
        self.stop = weakref.finalize(self, _stop, self._descriptor, pid)

    def send(self, descriptors: Sequence[int]) -> bool:
        """Hand over descriptors; False if nobody takes them."""
        with socket.socket(fileno=os.dup(self._descriptor)) as control:
            try:
                socket.send_fds(control, [b"run"], descriptors)
            except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError):
                return False
        return True


def _stop(descriptor: int, pid: int) -> None:
    os.close(descriptor)
    with contextlib.suppress(ChildProcessError):  # somebody else has waited for it
        os.waitpid(pid, 0)
