"""A network of its own with nothing but a loopback, on which somebody outside listens."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import socket
import struct

PORT = 3128
"""Where the tool finds the proxy."""

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_DUMPABLE = 4
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_libc = ctypes.CDLL(None, use_errno=True)


def own_loopback(channel: socket.socket) -> None:
    """Enter a new network namespace and send the kernel a socket that listens in it.

    A socket stays in the namespace where it was made. So the kernel's proxy takes connections from inside without a
    process, a route or a path that leads out.
    """
    uid, gid = os.geteuid(), os.getegid()
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # who has been root does not own its /proc files until it execs
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"no network namespace: {os.strerror(code)}")
    for name, content in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        _raise_loopback(listener)
        listener.bind(("127.0.0.1", PORT))
        listener.listen(128)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener.fileno()]))]
        channel.sendmsg([b"{}"], rights)


def _raise_loopback(any_socket: socket.socket) -> None:
    request = struct.pack("16sh14x", b"lo", 0)
    flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
    fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
