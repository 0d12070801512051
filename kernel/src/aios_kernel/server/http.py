"""The OpenAI-compatible front: HTTP on unix sockets and on loopback, for agents of any language without an adapter.

The bearer token is the kernel's; by a unix socket, which only this user may open, none is needed. `TOKEN:NAME` or the
header `X-AIOS-Agent` names the agent, `X-AIOS-Priority` its priority, `X-AIOS-Program` its run, `X-AIOS-Group` its
group.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn

from aios_kernel.config import Config
from aios_kernel.kernel import Kernel
from aios_kernel.server.http_addresses import Listener, close, listeners
from aios_kernel.server.http_agents import HttpAgents
from aios_kernel.server.http_app import MOST_BODY_BYTES, Front
from aios_kernel.server.http_guard import Guard
from aios_kernel.server.http_mcp import McpRoute
from aios_kernel.server.http_patience import PatientHttp
from aios_kernel.server.runtime import principal_name
from aios_kernel.server.unix import Doorman

_GRACE_S = 2
"""How long open connections may take to end when the front stops; their calls are cancelled first."""


class HttpFront:
    """Serves a kernel over HTTP on the kernel's own loop."""

    def __init__(self, kernel: Kernel, config: Config, token: str) -> None:
        self._config = config
        self._agents = HttpAgents(kernel)
        self._mcp = McpRoute(self._agents, MOST_BODY_BYTES)
        owner = principal_name()
        doorman = Doorman(token, owner, config.principals)
        self._server = _Server(
            uvicorn.Config(
                Guard(Front(kernel, self._agents, self._mcp).app(), doorman, owner),
                http=PatientHttp,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self._listeners: list[Listener] = []
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> list[str]:
        """Listen, and give the addresses: `http://127.0.0.1:8400`, `unix:/path/http.sock`. Raises ConfigError."""
        self._listeners = listeners(self._config)
        self._serving = asyncio.create_task(self._server.serve([listener.socket for listener in self._listeners]))
        ready = asyncio.create_task(self._server.ready.wait())
        await asyncio.wait({self._serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        if self._serving.done():
            ready.cancel()
            close(self._listeners)
            self._serving.result()
        return [listener.url for listener in self._listeners]

    async def stop(self) -> None:
        """Cancel what is open, end the programs and stop listening."""
        self._agents.close()
        await self._mcp.stop()
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        close(self._listeners)


class _Server(uvicorn.Server):
    """uvicorn on a loop that belongs to somebody else."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals to the kernel's process."""
        yield
