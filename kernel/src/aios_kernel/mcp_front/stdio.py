"""The kernel as an MCP server on standard input and output; `aios mcp` runs it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import uuid
from typing import final

from aios_kernel.client import AsyncClient, connect
from aios_kernel.config import Config, load
from aios_kernel.errors import AiosError, ConfigError, KernelUnavailable
from aios_kernel.syscalls import AgentExit, AgentSpawn, Result, Syscall


@final
class Road:
    """One program of an agent in a kernel that is joined or started, and joined anew when it has gone."""

    def __init__(self, config: Config, agent: str, group: str | None) -> None:
        self._config = config
        self._agent = agent
        self._group = group
        self._program = ""
        self._client: AsyncClient | None = None
        self._joining = asyncio.Lock()

    async def ask(self, call: Syscall) -> Result:
        """Run a syscall as the agent. Raises its error; KernelUnavailable is not tried again: it may have been run."""
        client = await self._joined()
        try:
            return await client.call(call, program=self._program)
        except KernelUnavailable:
            if self._client is client:
                self._client = None
                client.connection.close()
            raise

    async def _joined(self) -> AsyncClient:
        async with self._joining:
            if self._client is None:
                client = AsyncClient(await asyncio.to_thread(connect, self._config, client="mcp"))
                self._program = uuid.uuid4().hex[:16]
                spawn = AgentSpawn(program=self._program, agent=self._agent, framework="mcp", group=self._group)
                try:
                    await client.call(spawn)
                except BaseException:
                    client.connection.close()
                    raise
                self._client = client
            return self._client

    async def join(self) -> None:
        """Join or start the kernel now: what is wrong is said before a client talks to us."""
        await self._joined()

    async def leave(self) -> None:
        """End the program in good order."""
        if self._client is not None:
            try:
                await self._client.call(AgentExit(), program=self._program)
            except AiosError as error:
                logging.getLogger(__name__).debug("the kernel has gone before us: %s", error.message)
            self._client.connection.close()


async def serve(config: Config, agent: str, group: str | None) -> None:
    """Serve until standard input ends. Raises ConfigError without the `mcp` package, and what joining raises."""
    try:
        from mcp.server.stdio import stdio_server

        from aios_kernel.mcp_front.server import mcp_server
    except ModuleNotFoundError as error:
        raise ConfigError(f"an MCP server needs {error.name}", fix="pip install 'aios-kernel[mcp]'") from error
    road = Road(config, agent, group)
    try:
        await road.join()
        server = mcp_server(lambda context: road.ask)
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())
    finally:
        await road.leave()


def main() -> int:
    """Serve; gives the exit status. Standard output is the protocol's: errors go to standard error."""
    parser = argparse.ArgumentParser(prog="aios mcp", description=__doc__)
    parser.add_argument("--agent", default="mcp", help="the agent in whose name the calls are made")
    parser.add_argument("--group", help="its group")
    options = parser.parse_args()
    try:
        asyncio.run(serve(load(), options.agent, options.group))
    except AiosError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
