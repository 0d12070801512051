"""The file of the kernel's unix socket: made for one user, in a safe folder, never in the place of anything else."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from aios_kernel import errors

_ELSEWHERE = "set AIOS_HOME to a directory of your own with a short path (a socket's may have 100 characters)"


def bind(path: Path) -> socket.socket:
    """A socket at `path` that this user alone may use. Raises ConfigError or KernelLocked when that cannot be."""
    private_folder(path.parent)
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Not by the umask, which belongs to all threads of the process. Linux heeds the mode of the unbound socket;
        # elsewhere the folder protects it for the moment until it is set.
        with contextlib.suppress(OSError):
            os.fchmod(sock.fileno(), 0o600)
        sock.bind(str(path))
        path.chmod(0o600)
    except OSError as error:
        sock.close()
        raise errors.ConfigError(f"no socket can be made at {path}: {error}", fix=_ELSEWHERE) from error
    return sock


def private_folder(folder: Path) -> None:
    """Make a folder for sockets and tokens. Raises ConfigError when others could replace what is in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except OSError as error:
        raise errors.ConfigError(f"{folder} cannot be used: {error}", fix=_ELSEWHERE) from error
    if found.st_uid not in {os.getuid(), 0} or found.st_mode & stat.S_IWOTH:
        raise errors.ConfigError(
            f"other users may write to {folder}; a kernel's socket is not safe there", fix=_ELSEWHERE
        )


def remove(path: Path) -> None:
    """Remove a socket; never anything else. Raises ConfigError when something else lies there."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise errors.ConfigError(f"{path} exists and is no socket", fix="set AIOS_KERNEL to another path")
        path.unlink()


def _clear(path: Path) -> None:
    """Remove the socket of a kernel that was killed, never one that is answered."""
    if _answers(path):
        raise errors.KernelLocked(f"another kernel answers at {path}", fix="use it, or set AIOS_KERNEL differently")
    remove(path)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # one whose queue is full and who takes no more would keep us waiting for ever
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True
