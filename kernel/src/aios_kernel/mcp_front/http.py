"""The kernel as an MCP server on its HTTP front: `/mcp`, streamable HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol, final

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.types import Receive, Scope, Send

from aios_kernel.mcp_front.server import Ask, Context, mcp_server

_MOST_SESSIONS: Final = 1000


class Called(Protocol):
    """What is known of a caller here."""

    @property
    def principal(self) -> str:
        """Proved by the token."""
        ...


@final
class McpEndpoint:
    """An ASGI application behind the front's guard, which puts the caller into the request's state.

    Args:
        asker: gives the road of a caller.
        most_body: bytes of a request.
    """

    def __init__(self, asker: Callable[[Any], Ask], most_body: int) -> None:
        self._asker = asker
        self._manager = StreamableHTTPSessionManager(
            mcp_server(self._ask), max_request_body_size=most_body, max_sessions=_MOST_SESSIONS
        )
        self._started = asyncio.Event()
        self._over = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to take sessions."""
        self._serving = asyncio.create_task(self._serve())
        await self._started.wait()

    async def stop(self) -> None:
        """End all sessions."""
        self._over.set()
        if self._serving is not None:
            await self._serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. A session is its principal's: to others it is not there."""
        caller: Called = scope["state"]["caller"]
        scope["user"] = AuthenticatedUser(AccessToken(token="", client_id=caller.principal, scopes=[]))
        await self._manager.handle_request(scope, receive, send)

    def _ask(self, context: Context) -> Ask:
        """Each request brings its caller along, also within one session."""
        assert context.request is not None
        return self._asker(context.request.state.caller)

    async def _serve(self) -> None:
        async with self._manager.run():
            self._started.set()
            await self._over.wait()
