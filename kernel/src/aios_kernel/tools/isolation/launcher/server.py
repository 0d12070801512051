"""The fork server: has a supervisor ready for the next call, until the kernel goes away."""

from __future__ import annotations

import gc
import os
import signal
import socket
import time

from .supervisor import get_ready, supervise

DESCRIPTORS = 7
"""Request, channel, stdin, stdout, stderr, result, seccomp program."""

_TAKEN, _OVER = b"t", b"o"
_AGAIN_S = 0.05


def main() -> None:
    """Serve on descriptor 0."""
    os.closerange(3, 1 << 20)  # what the kernel had open and inheritable
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the kernel decides when calls end
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors need no one to wait for them
    gc.collect()
    gc.freeze()
    while _serve_one(control) != _OVER:
        pass


def _serve_one(control: socket.socket) -> bytes:
    """Fork a supervisor and wait until it has a call, or there will be none; empty: somebody has killed it."""
    told, tell = os.pipe()
    try:
        pid = os.fork()
    except OSError:  # no more processes: the call waits in the socket
        os.close(told)
        os.close(tell)
        time.sleep(_AGAIN_S)
        return b""
    if pid == 0:
        try:
            _wait_for_call(control, tell)
        finally:
            os._exit(0)
    os.close(tell)
    try:
        return os.read(told, 1)
    finally:
        os.close(told)


def _wait_for_call(control: socket.socket, tell: int) -> None:
    get_ready()
    message, descriptors, _, _ = socket.recv_fds(control, 16, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    os.write(tell, _TAKEN if message else _OVER)
    os.close(tell)
    control.close()
    if message:
        supervise(descriptors)
