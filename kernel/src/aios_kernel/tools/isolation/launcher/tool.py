"""The child that turns into the tool: descriptors, rights, limits, then exec, or the call of a function."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from typing import Any, NoReturn

from . import function, landlock, network, privileges, staging

_FILTER, _RULES = 4, 5
_HIGH = 200
"""Above the descriptors that the tool will have."""


class _Teller:
    """Tells the supervisor why the tool was not started, until the exec closes its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def tell(self, error: BaseException) -> None:
        os.write(self.descriptor, (str(error) or type(error).__name__).encode())


def become_tool(
    request: dict[str, Any], folder: str, channel: socket.socket, descriptors: list[int], tell: int
) -> NoReturn:
    """Never returns. What goes wrong before the exec is written to `tell`, which the exec closes."""
    teller = _Teller(tell)
    status = 127  # this process must not go on as a copy of its parent, whatever happens
    try:
        try:
            _prepare(request, folder, channel, descriptors, teller)
        except BaseException as error:  # noqa: BLE001 - the supervisor reports it
            teller.tell(error)
        else:
            status = 1
            function.main()
            status = 0
    finally:
        os._exit(status)


def _prepare(
    request: dict[str, Any], folder: str, channel: socket.socket, descriptors: list[int], teller: _Teller
) -> None:
    os.setsid()
    _stage(request, folder)
    confined = request["landlock"]
    rules = landlock.ruleset(confined["read"], [folder, *confined["write"]]) if confined is not None else -1
    limits: dict[str, int] = dict(request["limits"])
    if "nproc" in limits and request["uid"] is None:
        limits["nproc"] += privileges.tasks_of(os.getuid())  # a user's processes are counted together
    program = _read(descriptors[4])
    if request["uid"] is not None:
        privileges.become(request["uid"], reads=confined is not None)
    if request["listen"]:
        network.own_loopback(channel)
    channel.detach()
    _arrange(descriptors[:5], rules, teller)
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
    environment = dict(request["env"])
    if request["folder"] and not request["staged"]:
        environment |= {"HOME": folder, "TMPDIR": folder}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if request["argv"]:
        os.execve(request["argv"][0], request["argv"], environment)
    os.environ.clear()
    os.environ.update(environment)
    os.close(teller.descriptor)


def _stage(request: dict[str, Any], folder: str) -> None:
    """Write the paths of staged places into the command line."""
    staged: dict[str, str] = request["staged"]
    if staged:
        paths = staging.stage(list(staged.values()), folder)
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
