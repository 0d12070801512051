"""The child that turns into the tool: descriptors, rights, limits, then exec, or the call of a function."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
from typing import Any, NoReturn

from . import function, landlock, network, privileges, staging

_FIRST, _FILTER, _RULES = 3, 4, 5
_NOT_STARTED = 127
ALONE = "AIOS_CONFINED"
"""The variable that has the request of a tool without supervisor."""
_HIGH = 200
"""Above the descriptors that the tool will have."""


class _Teller:
    """Tells the supervisor why the tool was not started, until the exec closes its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def tell(self, error: BaseException) -> None:
        os.write(self.descriptor, (str(error) or type(error).__name__).encode())


def spawn_tool(request: dict[str, Any], folder: str, channel: socket.socket, descriptors: list[int]) -> int:
    """Start a program that confines itself, or is trusted; gives its pid. Raises OSError.

    This process takes on user and limits and hands them down, so that nothing is left to do between fork and exec: the
    fork copies no memory (vfork).
    """
    files = [_opened(file) for file in request["files"]]
    if request["uid"] is not None:
        privileges.become(request["uid"], reads=False)
    if request["listen"]:
        network.own_loopback(channel)
    privileges.limit(request["limits"])
    passed = _numbered([*descriptors[3:5], *files] if request["pass_filter"] else descriptors[3:4])
    process = subprocess.Popen(
        request["argv"],
        stdin=descriptors[0],
        stdout=descriptors[1],
        stderr=descriptors[2],
        pass_fds=passed,
        cwd=request["cwd"] or folder,
        env=_environment(request, folder),
        start_new_session=True,
        umask=-1,
    )
    for descriptor in passed:
        os.close(descriptor)
    process.returncode = 0  # the supervisor waits for it
    return process.pid


def _numbered(descriptors: list[int]) -> list[int]:
    """Copies with the numbers from 3 on."""
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH) for descriptor in descriptors]
    return [os.dup2(descriptor, _FIRST + number, inheritable=True) for number, descriptor in enumerate(moved)]


def _opened(file: str) -> int:
    return fcntl.fcntl(os.open(file, os.O_RDONLY | os.O_CLOEXEC), fcntl.F_DUPFD_CLOEXEC, _HIGH)


def become_tool(
    request: dict[str, Any], folder: str, channel: socket.socket, descriptors: list[int], tell: int
) -> NoReturn:
    """Never returns. What goes wrong before the exec is written to `tell`, which the exec closes."""
    teller = _Teller(tell)
    status = _NOT_STARTED  # this process must not go on as a copy of its parent, whatever happens
    try:
        try:
            os.setsid()
            _prepare(request, folder, channel, descriptors, teller)
        except BaseException as error:  # noqa: BLE001 - the supervisor reports it
            teller.tell(error)
        else:
            status = 1
            status = function.main()
    finally:
        os._exit(status)


def become_tool_alone() -> NoReturn:
    """Turn into the tool without a supervisor: this process was started by somebody who will wait for it and end it.

    The request stands in the environment, with the filter in it; the folder is the working directory. What a function
    returns goes to the standard output, and what it prints to the standard error: progress.
    """
    teller = _Teller(fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, _HIGH))
    status = _NOT_STARTED
    try:
        try:
            request = json.loads(os.environ[ALONE])
            folder = os.getcwd()
            if request["uid"] is not None:
                os.chown(folder, request["uid"], request["uid"])
            program = os.memfd_create("filter", os.MFD_CLOEXEC)
            os.write(program, bytes.fromhex(request["program"]))
            os.lseek(program, 0, os.SEEK_SET)
            streams = [0, 2, 2, 1] if request["function"] else [0, 1, 2, os.open(os.devnull, os.O_WRONLY)]
            _prepare(request, folder, None, [*streams, program], teller)
        except BaseException as error:  # noqa: BLE001 - all that is left to do is to say why
            teller.tell(error)
        else:
            status = 1
            status = function.main()
    finally:
        os._exit(status)


def _prepare(
    request: dict[str, Any], folder: str, channel: socket.socket | None, descriptors: list[int], teller: _Teller
) -> None:
    files = [_opened(file) for file in request["files"]]
    _stage(request, folder, alone=channel is None)
    confined = request["landlock"]
    rules = landlock.ruleset(confined["read"], [folder, *confined["write"]]) if confined is not None else -1
    limits: dict[str, int] = dict(request["limits"])
    if "nproc" in limits and request["uid"] is None:
        limits["nproc"] += privileges.tasks_of(os.getuid())  # a user's processes are counted together
    program = _read(descriptors[4])
    if request["uid"] is not None:
        privileges.become(request["uid"], reads=confined is not None)
    if channel is not None:
        if request["listen"]:
            network.own_loopback(channel)
        channel.detach()
    _arrange([*descriptors[:5], *files], rules, teller)
    privileges.limit(limits)
    if not request["pass_filter"]:
        os.close(_FILTER)
    if confined is not None:
        privileges.forbid_new_privileges()
        landlock.restrict(_RULES)
        privileges.filter_calls(program)
    _go(request, folder, teller)


def _go(request: dict[str, Any], folder: str, teller: _Teller) -> None:
    os.umask(0o077)
    os.chdir(request["cwd"] or folder)
    environment = _environment(request, folder)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if request["argv"]:
        os.execve(request["argv"][0], request["argv"], environment)
    os.environ.clear()
    os.environ.update(environment)
    os.close(teller.descriptor)


def _environment(request: dict[str, Any], folder: str) -> dict[str, str]:
    own = {"HOME": folder, "TMPDIR": folder} if request["folder"] and not request["staged"] else {}
    return request["env"] | own


def _stage(request: dict[str, Any], folder: str, *, alone: bool) -> None:
    """Write the paths of staged places into the command line.

    The folder of a job lies where others cannot reach it: what it reads is staged elsewhere.
    """
    staged: dict[str, str] = request["staged"]
    if staged:
        paths = staging.stage(list(staged.values()), None if alone else folder, request["argv"])
        for position, path in zip(staged, paths, strict=True):
            request["argv"][int(position)] = path


def _read(descriptor: int) -> bytes:
    return os.pread(descriptor, 1 << 20, 0)


def _arrange(wanted: list[int], rules: int, teller: _Teller) -> None:
    """Number the descriptors of the tool from 0 on, then the Landlock rules if any, then the teller's; close others."""
    wanted = [*wanted, *([rules] if rules >= 0 else []), teller.descriptor]
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _HIGH) for descriptor in wanted]
    for number, descriptor in enumerate(moved):
        os.dup2(descriptor, number, inheritable=True)
    teller.descriptor = len(wanted) - 1
    os.set_inheritable(teller.descriptor, False)
    os.closerange(len(wanted), 1 << 20)
