"""Named points of the write paths at which a kernel under test dies, fails or waits.

A test names a file in `AIOS_FAILPOINTS` of a kernel's environment: a JSON object of faults by point, read again at
every point that is reached, so that a fault can come and go while the kernel runs. Without that variable, as everywhere
else, a point is a call of an empty function; no client and no configuration can set it. docs/reliability.md lists them.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

ENVIRONMENT: Final = "AIOS_FAILPOINTS"

Action: TypeAlias = Literal["kill", "tear", "ENOSPC", "EIO", "EMFILE", "memory", "sleep"]
"""`kill`: SIGKILL; `tear`: SIGKILL in the middle of a write (of a database's file, elsewhere as `kill`); an error of
the system by its name; `memory`: MemoryError; `sleep`: wait."""

_log = logging.getLogger(__name__)


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens at a point.

    Attributes:
        action: see `Action`.
        skip: so many times the point is passed unharmed before.
        times: how often it happens; None: from then on always.
        seconds: of `sleep`.
    """

    action: Action
    skip: int = 0
    times: int | None = None
    seconds: float = 0.0


class Plan:
    """The faults of a file, and how often each point was reached under the present content of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._text = b""
        self._faults: dict[str, Fault] = {}
        self._reached: dict[str, int] = {}

    def at(self, name: str) -> Fault | None:
        """The fault that is due at a point now."""
        with self._lock:
            self._read()
            fault = self._faults.get(name)
            if fault is None:
                return None
            self._reached[name] = number = self._reached.get(name, 0) + 1
        due = number > fault.skip and (fault.times is None or number <= fault.skip + fault.times)
        return fault if due else None

    def _read(self) -> None:
        try:
            text = self._path.read_bytes()
        except OSError:  # also without descriptors: what was read last holds
            return
        if text != self._text:
            self._text, self._reached = text, {}
            self._faults = msgspec.json.decode(text or b"{}", type=dict[str, Fault])


def happen(name: str, fault: Fault) -> None:
    """Let a fault happen. Raises OSError or MemoryError, or does not return."""
    _log.warning("failpoint %s: %s", name, fault.action)
    if fault.action in ("kill", "tear"):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.action == "sleep":
        time.sleep(fault.seconds)
    elif fault.action == "memory":
        raise MemoryError(f"failpoint {name}")
    else:
        number = getattr(errno, fault.action)
        raise OSError(number, os.strerror(number), f"failpoint {name}")


def _pass(name: str) -> None:
    """What a point is in every kernel that is not under test."""


def _reach(name: str) -> None:
    assert plan is not None
    fault = plan.at(name)
    if fault is not None:
        happen(name, fault)


plan: Final = Plan(Path(os.environ[ENVIRONMENT])) if ENVIRONMENT in os.environ else None
failpoint: Final[Callable[[str], None]] = _pass if plan is None else _reach
"""`failpoint(name)`: a point in a write path. Raises what a test wants it to."""
