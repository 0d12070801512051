"""One confined process from the kernel's side: its streams, its end, and its death when nobody waits any more."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Generator, Sequence
from typing import final

import msgspec

from aios_kernel.errors import ToolNotStarted
from aios_kernel.tools.isolation.forkserver import ForkServer
from aios_kernel.tools.isolation.proxy import Listening

_CHUNK = 1 << 16
_TAIL = 4096
_KILL_S = 5.0
_MESSAGE = 4096


class Request(msgspec.Struct, kw_only=True):
    """What the launcher does; it reads this as JSON.

    Attributes:
        argv: absolute path of a program, and its arguments; empty: the function that stdin names.
        env: whole environment; HOME and TMPDIR are the folder of the call, if it has one.
        cwd: where it runs; empty: the folder of the call.
        folder: where a new folder is made for the call; empty: none is made.
        uid: user to become, for a kernel that is root.
        files: opened as descriptors 5 and following, for bubblewrap.
        staged: places that `uid` could not reach, by their position in argv.
        limits: resource limits by their names.
        landlock: `read` and `write` places of level `subprocess`.
        pass_filter: leave the seccomp filter to bubblewrap, which finds it as descriptor 4.
        listen: run in a network of its own and send back a socket that listens there.
        time_s: seconds until all is killed.
    """

    argv: list[str]
    env: dict[str, str]
    cwd: str = ""
    folder: str = ""
    uid: int | None = None
    files: list[str] = []
    staged: dict[str, str] = {}
    limits: dict[str, int] = {}
    landlock: dict[str, list[str]] | None = None
    pass_filter: bool = False
    listen: bool = False
    time_s: float = 300.0


class Outcome(msgspec.Struct, kw_only=True):
    """How a call ended.

    Attributes:
        status: exit status; negative: the signal.
        timed_out: it was killed for its time limit.
        cpu_s: processor seconds of all its processes.
        launch_cpu_s: those of the supervisor that started and ended them.
        not_started: why there was nothing to end.
        stdout: the first of what it printed, within the limit.
        left_out: bytes of stdout beyond the limit.
        stderr: the last 4 KiB.
        result: what it wrote to the descriptor for results.
        result_left_out: bytes of the result beyond the limit.
    """

    status: int = 0
    timed_out: bool = False
    cpu_s: float = 0.0
    launch_cpu_s: float = 0.0
    not_started: str = ""
    stdout: bytes = b""
    left_out: int = 0
    stderr: bytes = b""
    result: bytes = b""
    result_left_out: int = 0


async def run(
    server: ForkServer,
    request: Request,
    *,
    stdin: bytes = b"",
    program: bytes = b"",
    output_bytes: int = 1 << 20,
    listening: Listening | None = None,
) -> Outcome:
    """Run a process to its end. When this is cancelled, all its processes are dead before it returns.

    Args:
        server: forks it.
        request: what to run, and how confined.
        stdin: what it reads.
        program: seccomp filter.
        output_bytes: of stdout and of the result, what is kept.
        listening: serves on the listening socket of a request with `listen`, until the end.

    Raises:
        ToolNotStarted: it could not be started.
    """
    streams = [_Stream(output_bytes), _Stream(_TAIL, last=True), _Stream(output_bytes)]
    with contextlib.ExitStack() as reading:
        for stream in streams:
            reading.enter_context(stream.reading())
        ends = [_sealed(stdin), *(stream.write_end for stream in streams)]
        outcome = await run_on(server, request, ends, program=program, listening=listening)
        for stream in streams:
            await stream.ended()
    outcome.stdout, outcome.left_out = streams[0].content()
    outcome.stderr, _ = streams[1].content()
    outcome.result, outcome.result_left_out = streams[2].content()
    return outcome


async def run_on(
    server: ForkServer,
    request: Request,
    streams: Sequence[int],
    *,
    program: bytes = b"",
    listening: Listening | None = None,
) -> Outcome:
    """Run a process to its end on streams of the caller's. When this is cancelled, all its processes are dead before.

    Args:
        server: forks it.
        request: what to run, and how confined.
        streams: descriptors for what it reads, prints, complains of and results in; closed here once it has them.
        program: seccomp filter.
        listening: as of `run`.

    Raises:
        ToolNotStarted: it could not be started.
    """
    with contextlib.ExitStack() as ours:
        with contextlib.ExitStack() as given:
            for descriptor in streams:
                given.callback(os.close, descriptor)
            channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.enter_context(channel)
            given.enter_context(theirs)
            channel.setblocking(False)
            files = [_sealed(data) for data in (msgspec.json.encode(request), program)]
            for descriptor in files:
                given.callback(os.close, descriptor)
            server.launch([files[0], theirs.fileno(), *streams, files[1]])
        outcome = await _ended(channel, listening)
    if outcome.not_started:
        raise ToolNotStarted(f"the process was not started: {outcome.not_started}")
    return outcome


async def _ended(channel: socket.socket, listening: Listening | None) -> Outcome:
    loop = asyncio.get_running_loop()
    try:
        if listening is None:
            return _outcome(await loop.sock_recv(channel, _MESSAGE))
        await _readable(channel)
        message, descriptors, _, _ = socket.recv_fds(channel, _MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
        if not descriptors:
            return _outcome(message)
        async with listening(socket.socket(fileno=descriptors[0])):
            return _outcome(await loop.sock_recv(channel, _MESSAGE))
    except BaseException:
        channel.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError, OSError):
            await asyncio.wait_for(loop.sock_recv(channel, _MESSAGE), _KILL_S)
        raise


def _outcome(message: bytes) -> Outcome:
    if not message:
        return Outcome(not_started="the machine has no processes left, or something killed the launcher")
    return msgspec.json.decode(message, type=Outcome)


async def _readable(channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(channel, ready.set_result, None)
    try:
        await ready
    finally:
        loop.remove_reader(channel)


@final
class _Stream:
    """A pipe that is read to its end, of which the first or the last `limit` bytes are kept."""

    def __init__(self, limit: int, *, last: bool = False) -> None:
        self._limit = limit
        self._last = last
        self._kept = bytearray()
        self._total = 0
        self._end = asyncio.get_running_loop().create_future()
        self.read_end, self.write_end = os.pipe()

    def content(self) -> tuple[bytes, int]:
        """What was kept, and how many bytes were not."""
        return bytes(self._kept), self._total - len(self._kept)

    async def ended(self) -> None:
        """Wait for the end of the stream: all that could write are dead, so that it is there or about to come."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._end, _KILL_S)

    @contextlib.contextmanager
    def reading(self) -> Generator[None]:
        """Read whenever there is something."""
        os.set_blocking(self.read_end, False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self.read_end, self._read)
        try:
            yield
        finally:
            loop.remove_reader(self.read_end)
            os.close(self.read_end)

    def _read(self) -> None:
        try:
            data = os.read(self.read_end, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self.read_end)
            if not self._end.done():
                self._end.set_result(None)
            return
        self._total += len(data)
        if self._last:
            self._kept += data
            del self._kept[: -self._limit]
        else:
            self._kept += data[: self._limit - len(self._kept)]


def _sealed(data: bytes) -> int:
    """A file in memory, to be read from its beginning; sealed, so that nobody fills the memory through it."""
    descriptor = os.memfd_create("aios-tool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
