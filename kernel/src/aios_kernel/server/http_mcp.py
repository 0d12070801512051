"""`/mcp` of the HTTP front, whose package is imported by the first request: that takes as long as a kernel's start."""

from __future__ import annotations

import asyncio
import functools
import importlib
from typing import TYPE_CHECKING, final

from starlette.types import Receive, Scope, Send

from aios_kernel import errors
from aios_kernel.server.http_agents import Caller, HttpAgents
from aios_kernel.server.http_replies import refusal
from aios_kernel.syscalls import Result, Syscall

if TYPE_CHECKING:
    from aios_kernel.mcp_front.http import McpEndpoint
    from aios_kernel.mcp_front.server import Ask


@final
class McpRoute:
    """An ASGI application that makes the endpoint when it is first asked for.

    Args:
        agents: the programs of those who call by HTTP.
        most_body: bytes of a request.
    """

    def __init__(self, agents: HttpAgents, most_body: int) -> None:
        self._agents = agents
        self._most_body = most_body
        self._making = asyncio.Lock()
        self._endpoint: McpEndpoint | None = None
        self._closed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it where the package is missing or the front is closing."""
        try:
            endpoint = await self._made()
        except errors.Unsupported as error:
            await refusal(error, 501)(scope, receive, send)
        except errors.KernelUnavailable as error:
            await refusal(error)(scope, receive, send)
        else:
            await endpoint(scope, receive, send)

    async def stop(self) -> None:
        """End all sessions: their streams would stay open for as long as the front waits for its requests."""
        async with self._making:
            self._closed = True
        if self._endpoint is not None:
            await self._endpoint.stop()

    async def _made(self) -> McpEndpoint:
        async with self._making:
            if self._closed:
                raise errors.KernelUnavailable("the kernel is shutting down", fix="aios serve")
            if self._endpoint is None:
                try:
                    module = await asyncio.to_thread(importlib.import_module, "aios_kernel.mcp_front.http")
                except ModuleNotFoundError as error:
                    raise errors.Unsupported(
                        f"this kernel has no package {error.name}", fix="pip install 'aios-kernel[mcp]'"
                    ) from error
                endpoint: McpEndpoint = module.McpEndpoint(functools.partial(_road, self._agents), self._most_body)
                await endpoint.start()
                self._endpoint = endpoint
            return self._endpoint


def _road(agents: HttpAgents, caller: Caller) -> Ask:
    """Syscalls of a caller, as its program."""

    async def ask(call: Syscall, /) -> Result:
        talk = agents.ask(caller, call)
        try:
            return await talk.result()
        except asyncio.CancelledError:
            talk.cancel()
            raise

    return ask
