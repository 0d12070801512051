"""Answers of the HTTP front: JSON, errors, and server-sent events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aios_kernel.errors import AiosError
from aios_kernel.openai_wire import error_reply

_JSON = "application/json"


def whole(body: Mapping[str, Any]) -> Response:
    """An answer in one piece."""
    headers = {"x-request-id": body["id"]} if isinstance(body.get("id"), str) else None
    return Response(msgspec.json.encode(body), headers=headers, media_type=_JSON)


def refusal(error: AiosError, status: int | None = None) -> Response:
    """An error in OpenAI's format; `status` overrides the one of its class."""
    reply = error_reply(error, status)
    if reply.status == 401:
        reply.headers["www-authenticate"] = "Bearer"
    return Response(msgspec.json.encode(reply.body), reply.status, reply.headers, media_type=_JSON)


class EventStream(Response):
    """Server-sent events, each sent as it comes. What happens when the client goes is its maker's affair."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them all."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with contextlib.aclosing(self._events) as events:
            async for data in events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
