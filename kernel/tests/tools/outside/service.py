"""A service outside of the kernel: its effects are lines of a file, `RULE CALL KEY`, and it may end whoever calls it.

`EFFECTS` names the file. `KILL_AT` is a point and a number: there, at that many times, the process dies by SIGKILL.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import signal

from aios_kernel.tools import EffectStatus

_reached = itertools.count(1)


def reach(point: str) -> None:
    """Die here, if that is what was asked for."""
    wanted, _, number = os.environ.get("KILL_AT", "").partition(":")
    if point == wanted and next(_reached) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)


def once(call: str) -> str:
    """An effect, whatever was before."""
    return _effect("once", call, "-")


def keyed(call: str, idempotency_key: str) -> str:
    """An effect, unless this key has had it."""
    with open(os.environ["EFFECTS"] + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _known(idempotency_key):
            return f"done {call}"
        return _effect("keyed", call, idempotency_key)


def queryable(call: str, idempotency_key: str) -> str:
    """An effect, whatever was before; it can be looked up."""
    return _effect("queryable", call, idempotency_key)


def status(idempotency_key: str) -> EffectStatus:
    """Whether the effect of a key has been."""
    call = _known(idempotency_key)
    return EffectStatus("done", f"done {call}") if call else EffectStatus("not_done")


def _effect(rule: str, call: str, key: str) -> str:
    reach("before the effect")
    file = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{rule} {call} {key}\n".encode())
    os.close(file)
    reach("after the effect")
    return f"done {call}"


def _known(key: str) -> str:
    if not os.path.exists(os.environ["EFFECTS"]):
        return ""
    with open(os.environ["EFFECTS"]) as file:
        return next((line.split()[1] for line in file if line.split()[2] == key), "")
