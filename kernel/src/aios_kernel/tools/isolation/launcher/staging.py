"""Shows places that only root can reach to a process that is about to stop being root."""

from __future__ import annotations

import ctypes
import os

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_BIND, _MS_PRIVATE = 0x4000, 0x1000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def stage(places: list[str], folder: str) -> list[str]:
    """Bind each place below `folder`, in a mount namespace that this process alone is in; gives the new paths.

    Raises OSError.
    """
    _check(_libc.unshare(_CLONE_NEWNS), "no mount namespace")
    _check(_libc.mount(None, b"/", None, _MS_PRIVATE | _MS_REC, None), "/")
    staged: list[str] = []
    for number, place in enumerate(places):
        target = f"{folder}/{number}"
        if os.path.isdir(place):
            os.mkdir(target, 0o755)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        _check(_libc.mount(place.encode(), target.encode(), None, _MS_BIND | _MS_REC, None), place)
        staged.append(target)
    return staged


def _check(done: int, what: str) -> None:
    if done != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
