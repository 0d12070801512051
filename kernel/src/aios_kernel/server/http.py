"""The OpenAI-compatible front: HTTP on loopback, for agents of any language without an adapter.

The bearer token is the kernel's. `TOKEN:NAME` or the header `X-AIOS-Agent` names the agent, `X-AIOS-Priority` its
priority, `X-AIOS-Group` its group.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn

from aios_kernel.config import Config
from aios_kernel.errors import ConfigError
from aios_kernel.kernel import Kernel
from aios_kernel.server.http_agents import HttpAgents
from aios_kernel.server.http_app import Front
from aios_kernel.server.http_guard import Guard, is_loopback
from aios_kernel.server.runtime import principal_name
from aios_kernel.server.unix import Doorman

_GRACE_S = 2
"""How long open connections may take to end when the front stops; their calls are cancelled first."""


class HttpFront:
    """Serves a kernel over HTTP on the kernel's own loop."""

    def __init__(self, kernel: Kernel, config: Config, token: str) -> None:
        self._address = config.http
        self._agents = HttpAgents(kernel)
        doorman = Doorman(token, principal_name(), config.principals)
        self._server = _Server(
            uvicorn.Config(
                Guard(Front(kernel, self._agents).app(), doorman),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen, and give the URL, such as `http://127.0.0.1:8400`. Raises ConfigError."""
        listener = _listen(self._address)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        ready = asyncio.create_task(self._server.ready.wait())
        await asyncio.wait({self._serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        if self._serving.done():
            ready.cancel()
            self._serving.result()
        host, port = listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Cancel what is open, end the programs and stop listening."""
        self._agents.close()
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving


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


def _listen(address: str) -> socket.socket:
    host, port = _parsed(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {address}: {error.strerror or error}",
            fix='choose another port, or ":0" for any free one',
        ) from error
    return listener


def _parsed(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, the host on loopback. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f'http = "{address}" is not host:port', fix='set it to "127.0.0.1:8400", for example')
    if not is_loopback(host):
        raise ConfigError(
            f'http = "{address}" would be reachable from other machines',
            fix='use "127.0.0.1:PORT"; put a proxy with TLS in front for anything else',
        )
    return "127.0.0.1" if host.lower() == "localhost" else host, int(port)
