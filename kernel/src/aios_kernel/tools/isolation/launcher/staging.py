"""Shows places that only root can reach to a process that is about to stop being root."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_BIND, _MS_PRIVATE = 0x4000, 0x1000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


_STANDS = ("/mnt", "/media", "/srv", "/opt")
"""Folders that every system has, and few programs need."""


def stage(places: list[str], folder: str | None, used: Iterable[str] = ()) -> list[str]:
    """Bind each place below `folder`, in a mount namespace that this process alone is in; gives the new paths.

    Without a folder a memory file system is mounted for them, which goes with the namespace, over a folder that none of
    the `used` paths lies in. Raises OSError.
    """
    _check(_libc.unshare(_CLONE_NEWNS), "no mount namespace")
    _check(_libc.mount(None, b"/", None, _MS_PRIVATE | _MS_REC, None), "/")
    if folder is None:
        folder = _stand([*places, *used])
        _check(_libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, b"size=64k,mode=711"), folder)
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


def _stand(used: list[str]) -> str:
    """A folder that everybody can reach, and that is not needed."""
    for folder in _STANDS:
        try:
            is_open = stat.S_ISDIR(os.lstat(folder).st_mode) and os.stat(folder).st_mode & stat.S_IXOTH
        except OSError:
            continue
        if is_open and not any(path == folder or path.startswith(f"{folder}/") for path in used):
            return folder
    raise OSError(f"none of {', '.join(_STANDS)} is free to show places in that only root can reach")


def _check(done: int, what: str) -> None:
    if done != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
