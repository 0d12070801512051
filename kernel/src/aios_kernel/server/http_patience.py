"""HTTP from clients that send little, slowly, or headers without end: they are cut off before anybody knows them."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_S = 10.0
"""So long a request's line and headers may take, as the socket's greeting may."""
MOST_HEADER_BYTES = 64 * 1024


class PatientHttp(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for the end of headers for ever and keeps all that has come of them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._due: asyncio.TimerHandle | None = None
        self._taken = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected; it has some seconds for its first request's headers."""
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived; while headers are due they are counted."""
        super().data_received(data)
        if self._due is not None:
            self._taken += len(data)
            if self._taken > MOST_HEADER_BYTES:
                self._cut("431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._await_headers()

    def on_headers_complete(self) -> None:
        """Its headers are there; for its body whoever serves it waits."""
        self._stop()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        if self._due is None:
            self._taken = 0
            self._due = self.loop.call_later(HEADERS_S, self._cut, "408 Request Timeout")

    def _stop(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _cut(self, status: str) -> None:
        """Say why, and hang up."""
        self._stop()
        if not self.transport.is_closing():
            self.transport.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
            self.transport.close()
