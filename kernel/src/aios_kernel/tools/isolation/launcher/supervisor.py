"""One process for each call: starts the tool, waits within the time limit, ends whatever the tool has left behind."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from typing import Any

from . import privileges
from .tool import become_tool

_POLL_S = 0.002


def supervise(descriptors: list[int]) -> None:
    """Run one call.

    `descriptors` are the request (JSON), the channel to the kernel, stdin, stdout, stderr, the result, and the seccomp
    program. The channel takes one JSON object: `status` (an exit status, negative for a signal), `timed_out`, `cpu_s`,
    or `not_started`, the reason. When the kernel closes its end, all is killed.
    """
    with os.fdopen(descriptors[0], "rb") as file:
        request: dict[str, Any] = json.load(file)
    channel = socket.socket(fileno=descriptors[1])
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    privileges.adopt_orphans()
    with _folder(request) as folder:
        try:
            pid = _start(request, folder, channel, descriptors[2:])
        except OSError as error:
            _report(channel, {"not_started": str(error)})
            return
        for descriptor in descriptors[2:]:
            os.close(descriptor)
        timed_out = not _wait(pid, channel, request["time_s"])
        status = _end(pid)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = usage.ru_utime + usage.ru_stime
        _report(channel, {"status": status, "timed_out": timed_out, "cpu_s": cpu_s})


@contextlib.contextmanager
def _folder(request: dict[str, Any]) -> Generator[str]:
    """A folder for this call alone, where it wants one; it goes with the call, also when the kernel has been killed."""
    if not request["folder"]:
        yield "/"
        return
    folder = tempfile.mkdtemp(prefix="aios-tool-", dir=request["folder"])
    if request["uid"] is not None:
        os.chown(folder, request["uid"], request["uid"])
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(folder: str) -> None:
    """Remove what a tool wrote. It may have taken its own rights away, or nested folders deeper than rmtree can go."""
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        for command in (["chmod", "-R", "u+rwx", folder], ["rm", "-rf", folder]):
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin"})


def _start(request: dict[str, Any], folder: str, channel: socket.socket, descriptors: list[int]) -> int:
    """Fork the tool; gives its pid. Raises OSError with what the child could not do before its exec."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        become_tool(request, folder, channel, descriptors, tell)
    os.close(tell)
    with os.fdopen(told, "rb") as file:
        problem = file.read()
    if problem:
        os.waitpid(pid, 0)
        raise OSError(problem.decode(errors="replace"))
    return pid


def _wait(pid: int, channel: socket.socket, time_s: float) -> bool:
    """Wait until the tool has ended; False if its time was over or the kernel has gone before."""
    ended = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([ended, channel], [], [], time_s)
    finally:
        os.close(ended)
    return bool(ready)


def _end(pid: int) -> int:
    """Kill all that is left of the tool and wait for it; gives the tool's own exit status.

    Its processes cannot leave: those whose parents have died are children of this one. A zombie among them keeps its
    number, so none that is listed can be a stranger's.
    """
    status = -signal.SIGKILL
    while True:
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == pid:
                    status = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            return status
        for descendant in _descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(descendant, signal.SIGKILL)
        time.sleep(_POLL_S)


def _descendants() -> list[int]:
    """All processes below this one; /proc/PID/task/*/children, which lists them, is not on every kernel."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    found = {os.getpid()}
    grown = True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return sorted(found - {os.getpid()})


def _report(channel: socket.socket, outcome: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the kernel has gone
        channel.send(json.dumps(outcome).encode())
