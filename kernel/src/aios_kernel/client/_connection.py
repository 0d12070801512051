"""One multiplexed connection: any thread sends, one reader thread hands each frame to whom it belongs.

A reader thread of our own, rather than a connection an event loop, because frameworks run several loops and plain
threads in one process, and loops die while the program goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from aios_kernel import errors, frames
from aios_kernel.syscalls import (
    ABI_VERSION,
    Cancel,
    ClientFrame,
    Delta,
    Failed,
    Hello,
    KernelFrame,
    Request,
    Syscall,
    ToolInvoke,
    Welcome,
)

_RECEIVE_BYTES = 256 * 1024
_GREETING_S = 30.0


class Sink(Protocol):
    """Where the frames of one request go. Called from the reader thread; must not block."""

    def put(self, frame: KernelFrame) -> None:
        """Take a frame; the last one is `Done` or `Failed`."""
        ...


class Connection:
    """An open, greeted connection to a kernel. Thread-safe. Not to be used in a forked child."""

    def __init__(self, sock: socket.socket, token: str, client: str = "") -> None:
        """Greet the kernel. Raises AuthError, HandshakeRefused or KernelUnavailable."""
        self._socket = sock
        self._ids = itertools.count(1)
        self._sinks: dict[int, Sink] = {}
        # Reentrant: a stream that the garbage collector closes may cancel while this thread is sending. Two locks,
        # because the reader must go on while a sender waits for a kernel that takes no more until somebody reads.
        self._lock = threading.RLock()
        self._sending = threading.RLock()
        self._broken: errors.AiosError | None = None
        self._reader = frames.kernel_frames()
        self.pid = os.getpid()
        self.welcome = self._greet(token, client)
        threading.Thread(target=self._read_forever, name="aios-client", daemon=True).start()

    @classmethod
    def open(cls, path: Path, token: str, client: str = "") -> Connection:
        """Connect to the socket at `path`. Raises OSError when nobody listens there."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
            return cls(sock, token, client)
        except BaseException:
            sock.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether calls can be made: not closed, not broken, not inherited by a fork."""
        return self._broken is None and self.pid == os.getpid()

    def submit(self, call: Syscall, sink: Sink, *, program: str | None, timeout_s: float | None) -> int:
        """Send a syscall; its frames go to `sink`, of which exactly one is `Done` or `Failed`."""
        self._check_fork()
        if isinstance(call, ToolInvoke) and not call.key:
            call = msgspec.structs.replace(call, key=uuid.uuid4().hex)
        number = next(self._ids)
        data = frames.encode(Request(id=number, call=call, program=program, timeout_s=timeout_s))
        with self._lock:
            if self._broken is not None:
                raise errors.from_code(self._broken.code, self._broken.message, fix=self._broken.fix)
            self._sinks[number] = sink
        self._send(data)
        return number

    def cancel(self, number: int) -> None:
        """Ask the kernel to stop a request; harmless when it has ended, or in a forked child."""
        if not self.alive:
            return
        with self._lock:
            known = number in self._sinks
        if known:
            self._send(frames.encode(Cancel(id=number)))

    def close(self) -> None:
        """Hang up; open requests end with KernelUnavailable. A forked child only lets go of its copy."""
        if self.pid != os.getpid():
            self._socket.close()
            return
        self._break(errors.KernelUnavailable("the connection to the kernel was closed"))

    def _send(self, data: bytes) -> None:
        try:
            with self._sending:
                self._send_all(memoryview(data))
        except OSError as error:
            self._break(_lost(str(error)))
        except BaseException:
            # Interrupted (ctrl-C): half a frame may be out, and nothing may follow it.
            self._break(_lost("a frame was cut short by an interrupt"))
            raise

    def _send_all(self, data: memoryview) -> None:
        """Send without blocking the thread, which may be an event loop's, as long as the kernel keeps up."""
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._socket, event)
        poll.poll()

    def _check_fork(self) -> None:
        if self.pid != os.getpid():
            raise errors.KernelUnavailable(
                "this connection belongs to the parent process", fix="connect again after a fork"
            )

    def _greet(self, token: str, client: str) -> Welcome:
        hello: ClientFrame = Hello(version=ABI_VERSION, token=token, client=client)
        try:
            self._socket.settimeout(_GREETING_S)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused at sight: why is there to read
                self._socket.sendall(frames.encode(hello))
            for frame in self._receive():
                if isinstance(frame, Welcome):
                    self._socket.setblocking(False)
                    return frame
                if isinstance(frame, Failed):
                    raise errors.from_code(frame.code, frame.message, fix=frame.fix)
        except OSError as error:
            raise _lost(str(error)) from error
        raise _lost("it hung up during the greeting")

    def _receive(self) -> Iterable[KernelFrame]:
        while data := self._received():
            yield from self._reader.feed(data)

    def _received(self) -> bytes:
        """What has come, once something has; empty when the kernel hung up."""
        while True:
            if not self._socket.getblocking():
                self._wait(select.POLLIN)
            try:
                return self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:  # woken for nothing
                continue

    def _read_forever(self) -> None:
        try:
            for frame in self._receive():
                self._deliver(frame)
            self._break(_lost("it hung up"))
        except Exception as error:  # noqa: BLE001 - whatever ends this thread, nobody may wait for it any longer
            self._break(_lost(str(error)))

    def _deliver(self, frame: KernelFrame) -> None:
        if isinstance(frame, Welcome):
            return
        if isinstance(frame, Failed) and frame.id == 0:
            self._break(errors.from_code(frame.code, frame.message, fix=frame.fix))
            return
        ends = not isinstance(frame, Delta)
        with self._lock:
            sink = self._sinks.pop(frame.id, None) if ends else self._sinks.get(frame.id)
        if sink is not None:
            sink.put(frame)

    def _break(self, error: errors.AiosError) -> None:
        with self._lock:
            if self._broken is not None:
                return
            self._broken = error
            orphans, self._sinks = self._sinks, {}
        for number, sink in orphans.items():
            sink.put(Failed(id=number, code=error.code, message=error.message, fix=error.fix))
        with contextlib.suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _lost(why: str) -> errors.KernelUnavailable:
    return errors.KernelUnavailable(
        f"the kernel went away: {why}", fix="run it again; `aios doctor` shows the kernel's log"
    )


def raised(frame: Failed) -> errors.AiosError:
    """The exception that a `Failed` frame stands for."""
    return errors.from_code(
        frame.code,
        frame.message,
        agent=frame.agent,
        syscall=frame.syscall,
        fix=frame.fix,
        retry_after_s=frame.retry_after_s,
    )
