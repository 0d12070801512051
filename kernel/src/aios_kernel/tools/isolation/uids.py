"""Users that exist for one call: what a kernel that is root becomes before it runs a tool."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Generator
from typing import final

from aios_kernel.errors import Busy, Unsupported

_FIRST = 0x70000000
"""Above what systemd hands out and container engines map."""

_PER_KERNEL = 256
_KERNELS = 1 << 18
_OUTLIVING = 1 << 26


@final
class Uids:
    """A number for each running call, so that limits on processes count it alone and no other tool shares its rights.

    A kernel that is not root has only its own: `lease` gives None.
    """

    def __init__(self) -> None:
        self._root = os.geteuid() == 0
        self._first = _FIRST + (os.getpid() % _KERNELS) * _PER_KERNEL
        self._used: set[int] = set()
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise Unsupported in a user namespace that has no numbers to give."""
        if self._root and not _is_mapped(_FIRST + _KERNELS * _PER_KERNEL + _OUTLIVING):
            raise Unsupported(
                "the kernel runs as root in a user namespace without spare users for its tools",
                fix="run the kernel as a user that is not root",
            )

    @contextlib.contextmanager
    def lease(self) -> Generator[int | None]:
        """A user for one call. Raises Busy when all are in use."""
        if not self._root:
            yield None
            return
        uid = self._take()
        try:
            yield uid
        finally:
            with self._lock:
                self._used.discard(uid)

    def for_good(self) -> int | None:
        """A user for a process that may outlive this kernel, drawn from so many that no other has it."""
        return _FIRST + _KERNELS * _PER_KERNEL + secrets.randbelow(_OUTLIVING) if self._root else None

    def _take(self) -> int:
        with self._lock:
            free = next((uid for uid in range(self._first, self._first + _PER_KERNEL) if uid not in self._used), None)
            if free is None:
                raise Busy("all users for confined tools are in use", fix="wait for calls to end", retry_after_s=1.0)
            self._used.add(free)
            return free


def _is_mapped(uid: int) -> bool:
    with open("/proc/self/uid_map", encoding="ascii") as file:
        ranges = [[int(word) for word in line.split()] for line in file]
    return any(inside <= uid < inside + count for inside, _, count in ranges)
