"""The unix-socket door: greets, checks token and peer, and turns frames into requests of a session."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import socket
import struct
from pathlib import Path

from aios_kernel import errors, frames
from aios_kernel.calls import failed
from aios_kernel.kernel import Kernel, Session
from aios_kernel.syscalls import ABI_VERSION, Cancel, ClientFrame, Hello, KernelFrame, Request, Welcome

_log = logging.getLogger(__name__)
_GREETING_S = 10.0
_WRITE_LIMIT = 64 * 1024 * 1024
"""A client that does not read its answers is cut off when this many bytes wait for it."""


class Doorman:
    """Decides who may come in: the token names the principal; the peer must be this user (or root)."""

    def __init__(self, token: str, principal: str, others: dict[str, str]) -> None:
        self._principals = {_digest(token): principal} | {digest: name for name, digest in others.items()}

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


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Door(asyncio.Protocol):
    """One connection. A broken frame ends this connection and nothing else."""

    def __init__(self, kernel: Kernel, doorman: Doorman) -> None:
        self._kernel = kernel
        self._doorman = doorman
        self._reader = frames.client_frames()
        self._session: Session | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected; it has ten seconds to greet."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not _same_user(transport):
            self._refuse(errors.AuthError("the kernel belongs to another user", fix="aios serve as this user"))
            return
        late = errors.ProtocolError("no greeting arrived")
        self._timer = self._kernel.loop.call_later(_GREETING_S, self._refuse, late)

    def data_received(self, data: bytes) -> None:
        """Frames have arrived."""
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except errors.AiosError as error:
            self._refuse(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: free what it held."""
        if self._timer is not None:
            self._timer.cancel()
        if self._session is not None:
            self._session.close()

    def _take(self, frame: ClientFrame) -> None:
        if isinstance(frame, Hello):
            self._greet(frame)
        elif self._session is None:
            raise errors.ProtocolError("the first frame must be a greeting")
        elif isinstance(frame, Request):
            self._session.request(frame, self._send)
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
        """Queue a frame; all frames of one turn of the loop leave in one write."""
        if self._transport is None or self._transport.is_closing():
            return
        try:
            data = frames.encode(frame)
        except errors.ProtocolError as error:
            data = frames.encode(failed(getattr(frame, "id", 0), error))
        if not self._out:
            self._kernel.loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        data, self._out = b"".join(self._out), []
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > _WRITE_LIMIT:
            _log.warning("a client does not read its answers; its connection is cut")
            self._transport.abort()

    def _refuse(self, error: errors.AiosError) -> None:
        """Say why and hang up."""
        assert self._transport is not None
        self._transport.write(b"".join(self._out) + frames.encode(failed(0, error)))
        self._out = []
        self._transport.close()


def _same_user(transport: asyncio.Transport) -> bool:
    sock = transport.get_extra_info("socket")
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the directory's mode 0700 is what protects the socket there
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid in {os.getuid(), 0}


async def listen(kernel: Kernel, doorman: Doorman, path: Path) -> asyncio.Server:
    """Open the door at `path`, readable by this user only. The caller holds the data directory's lock."""
    _clear(path)
    before = os.umask(0o177)
    try:
        return await kernel.loop.create_unix_server(lambda: Door(kernel, doorman), str(path), backlog=1024)
    finally:
        os.umask(before)


def _clear(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # left behind by a kernel that was killed
