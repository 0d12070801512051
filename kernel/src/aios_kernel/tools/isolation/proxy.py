"""An HTTP proxy for one call, which reaches the servers on an allow-list and nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, TypeAlias, final
from urllib.parse import urlsplit

from aios_kernel.errors import ConfigError

Listening: TypeAlias = Callable[[socket.socket], AbstractAsyncContextManager[None]]

_HEAD_BYTES = 1 << 16
_HEAD_S = 30.0
_CONNECT_S = 30.0
_CHUNK = 1 << 16
_REASONS = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway"}

_log = logging.getLogger(__name__)


class _Refused(Exception):
    """A status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Head(NamedTuple):
    """Where a request goes, and what of it is passed on; None: it asks for a tunnel."""

    host: str
    port: int
    passed_on: bytes | None


@final
class AllowList:
    """Servers as `host:port`; `*.example.org:443` stands for all names below, not for `example.org`.

    A name that leads to an address of this machine or of a private network is refused, whoever answered for it; such a
    server is allowed by its address.

    Raises:
        ConfigError: an entry that is none.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._entries = [_entry(entry) for entry in entries]

    def allows(self, host: str, port: int) -> bool:
        """Whether a host and a port are on the list."""
        return any(port == listed_port and _fits(host.lower(), listed) for listed, listed_port in self._entries)

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses to reach an allowed server at. Raises `_Refused`."""
        if not self.allows(host, port):
            raise _Refused(403, f"{host}:{port} is not on the tool's network list")
        if _is_address(host):
            return [host]
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise _Refused(502, f"{host} is not known: {error}") from error
        addresses = [str(entry[4][0]) for entry in found]
        if not all(ipaddress.ip_address(address.partition("%")[0]).is_global for address in addresses):
            raise _Refused(403, f"{host} leads to a private address; list the address itself if it is meant")
        return addresses


def serve(allowed: AllowList) -> Listening:
    """A proxy to run on a listening socket for as long as a call takes."""

    @contextlib.asynccontextmanager
    async def running(listener: socket.socket) -> AsyncGenerator[None]:
        clients: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(_client(reader, writer, allowed))
            clients.add(task)
            task.add_done_callback(clients.discard)

        server = await asyncio.start_server(accept, sock=listener, limit=_HEAD_BYTES)
        try:
            yield
        finally:
            server.close()
            for task in list(clients):
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    return running


async def _client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, allowed: AllowList) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        try:
            head = _read_head(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEAD_S))
            addresses = await allowed.addresses(head.host, head.port)
            async with _connected(addresses, head.port) as (far_reader, far_writer):
                if head.passed_on is None:
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    far_writer.write(head.passed_on)
                await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        except _Refused as refused:
            _log.info("a tool's proxy refused: %s", refused)
            writer.write(_refusal(refused))
            await writer.drain()
        except (asyncio.LimitOverrunError, TimeoutError):
            pass
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def _connected(
    addresses: list[str], port: int
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    problem = "no address"
    for address in addresses:
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), _CONNECT_S)
        except (OSError, TimeoutError) as error:
            problem = str(error) or type(error).__name__
            continue
        try:
            yield reader, writer
        finally:
            writer.close()
        return
    raise _Refused(502, f"no connection to port {port} of {', '.join(addresses)}: {problem}")


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def _read_head(data: bytes) -> _Head:
    line, _, rest = data.decode("latin-1").partition("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _Refused(400, "that is no HTTP request")
    method, target, version = words
    try:
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _Refused(400, str(error)) from error
    if not host:
        raise _Refused(400, "the request names no host")
    if method == "CONNECT":
        return _Head(host, port or 443, None)
    if parts.scheme != "http":
        raise _Refused(400, "only http: is forwarded; https: goes by CONNECT")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # One request a connection: the next could be for another server.
    fields = [field for field in rest.split("\r\n") if field and not _is_of_the_hop(field)]
    fields = [f"Host: {parts.netloc.rpartition('@')[2]}", *fields, "Connection: close"]
    return _Head(host, port or 80, "\r\n".join([f"{method} {path} {version}", *fields, "", ""]).encode("latin-1"))


def _is_of_the_hop(field: str) -> bool:
    name = field.partition(":")[0].strip().lower()
    return name in ("host", "connection", "keep-alive", "upgrade") or name.startswith("proxy-")


def _refusal(refused: _Refused) -> bytes:
    text = f"{refused}\n".encode()
    head = f"HTTP/1.1 {refused.status} {_REASONS[refused.status]}\r\nContent-Type: text/plain\r\n"
    return f"{head}Content-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode() + text


def _entry(entry: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{entry}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or any(mark in entry for mark in "/@?# "):
        raise ConfigError(
            f'network entry "{entry}" is no host and port', fix='write "host:port", such as "api.example.org:443"'
        )
    return host.lower(), port


def _fits(host: str, listed: str) -> bool:
    return host.endswith(listed[1:]) and host != listed[1:] if listed.startswith("*.") else host == listed


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
