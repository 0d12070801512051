"""One process for each call: starts the tool, waits within the time limit, ends whatever the tool has left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Generator
from typing import Any

from . import privileges
from .tool import become_tool, spawn_tool

_POLL_S = 0.0005
_PATIENCE = 40
_HIGH = 100


def get_ready() -> None:
    """What can be done before the call is known; after a fork the first use of anything costs most."""
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    privileges.adopt_orphans()
    json.loads(json.dumps({"": [0, None]}))


def supervise(descriptors: list[int]) -> None:
    """Run one call.

    `descriptors` are the request (JSON), the channel to the kernel, stdin, stdout, stderr, the result, and the seccomp
    program. The channel takes one JSON object: `status` (an exit status, negative for a signal), `timed_out`, `cpu_s`
    and `launch_cpu_s`, or `not_started`, the reason. When the kernel closes its end, all is killed.
    """
    descriptors = [_out_of_the_way(descriptor) for descriptor in descriptors]
    with os.fdopen(descriptors[0], "rb") as file:
        request: dict[str, Any] = json.load(file)
    channel = socket.socket(fileno=descriptors[1])
    with _folder(request) as folder:
        try:
            pid = _start(request, folder, channel, descriptors[2:])
        except OSError as error:
            _report(channel, {"not_started": str(error)})
            return
        for descriptor in descriptors[2:]:
            os.close(descriptor)
        timed_out = not _wait(pid, channel, request["time_s"])
        status = _end(pid, own_processes=request["pass_filter"])
        tool_s, own_s = _cpu_s(resource.RUSAGE_CHILDREN), _cpu_s(resource.RUSAGE_SELF)
        _report(channel, {"status": status, "timed_out": timed_out, "cpu_s": tool_s, "launch_cpu_s": own_s})


def _out_of_the_way(descriptor: int) -> int:
    """Move a descriptor up: the tool's are numbered from 0 on."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    os.close(descriptor)
    return moved


@contextlib.contextmanager
def _folder(request: dict[str, Any]) -> Generator[str]:
    """A folder for this call alone, where it wants one; it goes with the call, also when the kernel has been killed."""
    if not request["folder"]:
        yield "/"
        return
    folder = f"{request['folder']}/aios-tool-{os.urandom(8).hex()}"
    os.mkdir(folder, 0o700)
    if request["uid"] is not None:
        os.chown(folder, request["uid"], request["uid"])
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(folder: str) -> None:
    """Remove what a tool wrote. It may have taken its own rights away, or nested folders deeper than rmtree can go."""
    try:
        os.rmdir(folder)
        return
    except OSError:
        import shutil  # not in the fork server: what it has loaded, each fork copies
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        import subprocess

        for command in (["chmod", "-R", "u+rwx", folder], ["rm", "-rf", folder]):
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin"})


def _start(request: dict[str, Any], folder: str, channel: socket.socket, descriptors: list[int]) -> int:
    """Start the tool; gives its pid. Raises OSError with what could not be done."""
    if request["landlock"] is None and not request["staged"]:
        return spawn_tool(request, folder, channel, descriptors)
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


def _end(pid: int, *, own_processes: bool) -> int:
    """Kill all that is left of the tool and wait for it; gives the tool's own exit status.

    Its processes cannot leave: those whose parents have died are children of this one. A zombie among them keeps its
    number, so none that is listed can be a stranger's. With a process namespace of its own (`own_processes`) Linux
    kills them all with bubblewrap; looking for them, which takes longer, is for the case that it does not.
    """
    status = -signal.SIGKILL
    patience = _PATIENCE if own_processes else 0
    while True:
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == pid:
                    status = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            return status
        for one in [pid] if patience > 0 else _descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        patience -= 1
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


def _cpu_s(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def _report(channel: socket.socket, outcome: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the kernel has gone
        channel.send(json.dumps(outcome).encode())
