"""The unix-socket door: greets, checks token and peer, and turns frames into requests of a session."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import re
import socket
import struct
from collections.abc import AsyncGenerator
from pathlib import Path

from aios_kernel import errors, frames
from aios_kernel.calls import failed
from aios_kernel.kernel import Kernel
from aios_kernel.server.socket_file import bind, remove
from aios_kernel.session import Session
from aios_kernel.syscalls import ABI_VERSION, Cancel, ClientFrame, Hello, KernelFrame, Request, Welcome

_DIGEST = re.compile("[0-9a-fA-F]{64}")
_log = logging.getLogger(__name__)
_GREETING_S = 10.0
_WRITE_LIMIT = 8 * 1024 * 1024
"""While more bytes than this wait for a client, its requests wait too."""
_STALL_S = 30.0
"""A client for whom so much waits and that reads nothing for this long is cut off."""
_FAREWELL_S = 2.0


class Doorman:
    """Decides who may come in: the token names the principal; the peer must be this user (or root)."""

    def __init__(self, token: str, principal: str, others: dict[str, str]) -> None:
        """`others`: further principals, name to the SHA-256 (hex) of their token. Raises ConfigError for others."""
        self._principals = {_digest(token): principal} | {
            _checked(name, digest): name for name, digest in others.items()
        }

    def principal_of(self, token: str) -> str:
        """The principal of a token. Raises AuthError."""
        given = _digest(token)
        found: str | None = None
        for known, principal in self._principals.items():  # all of them: the time taken tells nothing
            if hmac.compare_digest(known, given):
                found = principal
        if found is None:
            raise errors.AuthError(
                "the token is wrong",
                fix="unset AIOS_TOKEN, or copy the one in run/token of the kernel's data directory",
            )
        return found


def _checked(name: str, digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise errors.ConfigError(
            f'the token of principal "{name}" must be given as the 64 hex digits of its SHA-256',
            fix="printf %s TOKEN | sha256sum",
        )
    return digest.lower()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Doors:
    """The open connections of one kernel."""

    def __init__(self) -> None:
        self._open: set[Door] = set()
        self._closing = False
        self._empty = asyncio.Event()

    def enter(self, door: Door) -> bool:
        """Count a connection; False when no more are taken."""
        if not self._closing:
            self._open.add(door)
        return not self._closing

    def leave(self, door: Door) -> None:
        """A connection is gone."""
        self._open.discard(door)
        if not self._open:
            self._empty.set()

    async def close(self) -> None:
        """Hang up everywhere; who does not read what is still due is cut off."""
        self._closing = True
        for hang_up in (Door.hang_up, Door.cut):
            for door in [*self._open]:
                hang_up(door)
            self._empty.clear()
            if self._open:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._empty.wait(), _FAREWELL_S)


class Door(asyncio.Protocol):
    """One connection. A broken frame ends this connection and nothing else."""

    def __init__(self, kernel: Kernel, doorman: Doorman, doors: Doors) -> None:
        self._kernel = kernel
        self._doorman = doorman
        self._doors = doors
        self._reader = frames.client_frames(kernel.gate)
        self._session: Session | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._out: list[bytes] = []
        self._taking = False
        self._written = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected; it has ten seconds to greet."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_LIMIT)
        if not self._doors.enter(self):
            transport.abort()
            return
        if not _same_user(transport):
            self._refuse(errors.AuthError("the kernel belongs to another user", fix="aios serve as this user"))
            return
        late = errors.ProtocolError("no greeting arrived")
        self._timer = self._kernel.loop.call_later(_GREETING_S, self._refuse, late)

    def data_received(self, data: bytes) -> None:
        """Frames have arrived."""
        self._taking = True
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except errors.AiosError as error:
            self._refuse(error)
        finally:
            self._taking = False
        # What was answered at once leaves at once: a turn of the loop later the engine's thread may have the processor.
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: free what it held."""
        for timer in (self._timer, self._stalled):
            if timer is not None:
                timer.cancel()
        self._doors.leave(self)
        if self._session is not None:
            self._session.close()

    def pause_writing(self) -> None:
        """Much waits for this client: take no more requests from it, and cut it off if it reads nothing at all."""
        if self._transport is not None:
            self._transport.pause_reading()
            self._watch()

    def resume_writing(self) -> None:
        """It has read."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        if self._stalled is not None:
            self._stalled.cancel()

    def hang_up(self) -> None:
        """Close once everything due has been sent."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def cut(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _watch(self) -> None:
        self._stalled = self._kernel.loop.call_later(_STALL_S, self._check_stall, self._taken())

    def _check_stall(self, before: int) -> None:
        if self._taken() == before:
            _log.warning("a client does not read its answers; its connection is cut")
            self.cut()
        else:
            self._watch()

    def _taken(self) -> int:
        """Bytes that the client's side has taken so far."""
        assert self._transport is not None
        return self._written - self._transport.get_write_buffer_size()

    def _take(self, frame: ClientFrame | frames.Unread) -> None:
        if isinstance(frame, Hello):
            self._greet(frame)
        elif self._session is None:
            raise errors.ProtocolError("the first frame must be a greeting")
        elif isinstance(frame, Request):
            self._session.request(frame, self._send)
        elif isinstance(frame, frames.Unread):
            self._session.refuse(frame, self._send)
        else:
            assert isinstance(frame, Cancel)
            self._session.cancel(frame.id)

    def _greet(self, hello: Hello) -> None:
        if self._session is not None:
            raise errors.ProtocolError("a second greeting arrived")
        if hello.version != ABI_VERSION:
            raise errors.HandshakeRefused(
                f"the client speaks ABI {hello.version}, this kernel ABI {ABI_VERSION}",
                fix="install the same version of aios-kernel on both sides, then restart with aios serve",
            )
        principal = self._doorman.principal_of(hello.token)
        self._session = self._kernel.connect(principal, hello.client)
        if self._timer is not None:
            self._timer.cancel()
        self._send(Welcome(version=ABI_VERSION, principal=principal, pid=os.getpid()))

    def _send(self, frame: KernelFrame) -> None:
        """Queue a frame; all frames of one turn of the loop, or of what has arrived at once, leave in one write."""
        if self._transport is None or self._transport.is_closing():
            return
        try:
            data = frames.encode(frame)
        except errors.ProtocolError as error:
            data = frames.encode(failed(getattr(frame, "id", 0), error))
        if not self._out and not self._taking:
            self._kernel.loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        data, self._out = b"".join(self._out), []
        if data and self._transport is not None and not self._transport.is_closing():
            self._written += len(data)
            self._transport.write(data)

    def _refuse(self, error: errors.AiosError) -> None:
        """Say why and hang up."""
        self._out.append(frames.encode(failed(0, error)))
        self.hang_up()


def _same_user(transport: asyncio.Transport) -> bool:
    sock = transport.get_extra_info("socket")
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the directory's mode 0700 is what protects the socket there
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid in {os.getuid(), 0}


@contextlib.asynccontextmanager
async def listening(kernel: Kernel, doorman: Doorman, doors: Doors, path: Path) -> AsyncGenerator[None, None]:
    """Hold the door at `path` open, for this user only. The caller holds the data directory's lock."""
    sock = bind(path)
    server = await kernel.loop.create_unix_server(lambda: Door(kernel, doorman, doors), sock=sock, backlog=1024)
    try:
        yield
    finally:
        server.close()
        remove(path)
