"""The streamable HTTP transport, with a limit on what a server may answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp.client.streamable_http import streamable_http_client

from aios_kernel.errors import ConfigError
from aios_kernel.tools.mcp.flood import Allowance
from aios_kernel.tools.mcp.process import MOST_LINE

_CONNECT_S = 10.0


@asynccontextmanager
async def http_transport(
    url: str, headers: Mapping[str, str], ended: Callable[[str], None]
) -> AsyncGenerator[tuple[Any, Any], None]:
    """Streams to the server at an URL, for `mcp.Client`. Redirects to another origin are not followed.

    `ended` is called, once or more, when the server sends more than it may.
    """
    # How long a call may take is the call's affair: a stream may be silent for as long.
    timeout = httpx2.Timeout(_CONNECT_S, read=None)
    transport = _Bounded(httpx2.AsyncHTTPTransport(), ended)
    async with (
        httpx2.AsyncClient(
            headers={**headers, "accept-encoding": "identity"}, timeout=timeout, transport=transport
        ) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=MOST_LINE) as streams,
    ):
        yield streams


def http_headers(named: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """Headers whose values stand in the environment, so that no secret stands in the tools file.

    Args:
        named: header to variable.
        known: the environment.

    Raises:
        ConfigError: a variable that is not set, or one of the kernel's own.
    """
    for header, variable in named.items():
        if variable.upper().startswith("AIOS_"):
            raise ConfigError(f"header {header}: {variable} is the kernel's own", fix="name another variable")
        if variable not in known:
            raise ConfigError(f"header {header}: {variable} is not set", fix=f"export {variable}=...")
    return {header: known[variable] for header, variable in named.items()}


class _Bounded(httpx2.AsyncBaseTransport):
    """A transport whose answers end with an error when they grow too large, or never stop."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, ended: Callable[[str], None]) -> None:
        self._inner = inner
        self._ended = ended

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()  # some bytes that were packed could be any number of bytes
            self._ended("it packed an answer that it was asked not to pack")
            raise httpx2.DecodingError("packed", request=request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        stream = _BoundedStream(response.stream, self._ended, events=_is_stream(response))
        return httpx2.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    """A body: a whole one may have the bytes of one message, a stream of events no more at once than is allowed."""

    def __init__(self, inner: httpx2.AsyncByteStream, ended: Callable[[str], None], *, events: bool) -> None:
        self._inner = inner
        self._ended = ended
        self._events = events

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size, allowance = 0, Allowance(time.monotonic())
        async with contextlib.aclosing(self):
            async for chunk in self._inner:
                size += len(chunk)
                if self._events:
                    # The answer is among them, and may be as large as any: only what follows that is paid by its size.
                    beyond, events = len(chunk) if size > MOST_LINE else 0, chunk.count(b"data:")
                    if not allowance.take(beyond, time.monotonic(), messages=events):
                        raise self._refused("it sends without end what nobody asked for")
                elif size > MOST_LINE:
                    raise self._refused(f"it sent a message of more than {MOST_LINE:,} bytes")
                yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _refused(self, reason: str) -> httpx2.ReadError:
        self._ended(reason)
        return httpx2.ReadError(reason)


def _is_stream(response: httpx2.Response) -> bool:
    return response.headers.get("content-type", "").startswith("text/event-stream")
