"""The fork server: takes descriptors on a socket, forks a supervisor for each call, until the kernel goes away."""

from __future__ import annotations

import gc
import os
import signal
import socket

from .supervisor import supervise

DESCRIPTORS = 7
"""Request, channel, stdin, stdout, stderr, result, seccomp program."""


def main() -> None:
    """Serve on descriptor 0."""
    os.closerange(3, 1 << 20)  # what the kernel had open and inheritable
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the kernel decides when calls end
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors need no one to wait for them
    gc.collect()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 16, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        if not message:
            return
        _fork(control, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _fork(control: socket.socket, descriptors: list[int]) -> None:
    try:
        if os.fork():
            return
    except OSError:
        return  # no more processes: the kernel sees the channel close
    try:
        control.close()
        supervise(descriptors)
    finally:
        os._exit(0)
