"""One MCP server of the tools file: started when it is needed and again when it has died, held to what is pinned."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Literal, TypeAlias, final

from aios_kernel.errors import AiosError, ToolError, ToolNotStarted, ToolUnapproved
from aios_kernel.syscalls import McpServerInfo
from aios_kernel.tools.file import McpEntry
from aios_kernel.tools.mcp.connection import Connection
from aios_kernel.tools.mcp.definition import Definition, changed_fields
from aios_kernel.tools.mcp.http import http_transport
from aios_kernel.tools.mcp.pins import FIRST_SIGHT, Approved, Pins
from aios_kernel.tools.mcp.process import StartProcess
from aios_kernel.tools.mcp.stdio import StdioTransport

State: TypeAlias = Literal["stopped", "starting", "running", "failed"]

_log = logging.getLogger(__name__)
_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 30.0
_HEALTHY_S: Final = 60.0
"""A connection that held for so long makes up for the failures before it."""
_PROBE_S: Final = 10.0
_CLOSE_S: Final = 10.0


@final
class McpServer:
    """A server and its sessions, one after the other. Everything here runs on the sessions' own loop.

    Args:
        name: its name in the tools file, and the first part of its tools' names.
        entry: how it is reached.
        start: starts its process; None: it is at an URL.
        headers: of requests to it.
        pins: what is approved of it.
        approved: called when `pin = "first"` has pinned its tools.
    """

    def __init__(
        self,
        name: str,
        entry: McpEntry,
        *,
        start: StartProcess | None,
        headers: Mapping[str, str],
        pins: Pins,
        approved: Callable[[], None],
    ) -> None:
        self.name = name
        self.state: State = "stopped"
        self.error = ""
        self.starts = 0
        self._entry = entry
        self._start = start
        self._headers = headers
        self._pins = pins
        self._approved = approved
        self._connection: Connection | None = None
        self._starting: asyncio.Future[Connection] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._prober: asyncio.Task[None] | None = None
        self._failures = 0
        self._retry_at_s = 0.0
        self._open = 0
        self._closing = False

    def info(self, approved: Approved | None) -> McpServerInfo:
        """How it is; may be asked from anywhere."""
        connection = self._connection
        return McpServerInfo(
            name=self.name,
            place=self._place(),
            state=self.state,
            approved_tools=len(approved.tools) if approved is not None else 0,
            approved_by=approved.approved_by if approved is not None else "",
            approved_s=approved.approved_s if approved is not None else 0.0,
            protocol=connection.protocol if connection is not None else "",
            starts=self.starts,
            error=self.error,
        )

    async def call(self, tool: str, arguments: dict[str, Any]) -> str:
        """Run a tool that is still what was approved.

        Raises:
            ToolNotStarted: the server does not run and is not started again yet, or does not list the tool.
            ToolUnapproved: the tool is not what was approved.
            ToolError: the tool, or the server, failed.
        """
        connection = await self.connected()
        self._open += 1
        silent = True
        try:
            await self._told(connection.fresh())
            self._check(connection, tool)
            text = await connection.call(f"{self.name}/{tool}", tool, arguments)
            silent = False
            return text
        except ToolError:
            silent = False
            raise
        finally:
            self._open -= 1
            if silent and not self._open and not connection.over:
                self._prober = asyncio.create_task(self._probe(connection))

    async def listed(self) -> Mapping[str, Definition]:
        """What the server lists now. Raises ToolNotStarted."""
        connection = await self.connected()
        await self._told(connection.relist())
        return connection.listed

    async def connected(self) -> Connection:
        """The running connection, started if need be. Raises ToolNotStarted."""
        if self._connection is not None and not self._connection.over:
            return self._connection
        loop = asyncio.get_running_loop()
        if self._closing:
            raise ToolNotStarted("the kernel is shutting down", fix="aios serve")
        if self._starting is None:
            wait_s = self._retry_at_s - loop.time()
            if wait_s > 0:
                raise self._not_running(wait_s)
            self._starting = loop.create_future()
            if self._keeper is None:
                self._keeper = asyncio.create_task(self._keep())
        return await asyncio.shield(self._starting)

    async def close(self) -> None:
        """End the session, then the process; what is open fails."""
        self._closing = True
        if self._prober is not None:
            self._prober.cancel()
        if self._keeper is None:
            return
        if self._connection is not None:
            self._connection.end("the kernel is shutting down")
        _, late = await asyncio.wait([self._keeper], timeout=_CLOSE_S if self._connection is not None else 0.0)
        if late:
            self._keeper.cancel()
            await asyncio.wait([self._keeper], timeout=_CLOSE_S)
        self._settle(ToolNotStarted("the kernel is shutting down", fix="aios serve"))

    # --- its life ---------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """One connection after the other; the first, and without `start = "kernel"` each, because somebody waits."""
        while not self._closing:
            began_s = asyncio.get_running_loop().time()
            reason = await self._once()
            ran = self._connection is not None
            self._connection, self.state, self.error = None, "failed", reason
            backoff_s = self._backoff(ran, asyncio.get_running_loop().time() - began_s)
            self._retry_at_s = asyncio.get_running_loop().time() + backoff_s
            if ran and not backoff_s and self._starting is not None and not self._closing:
                continue  # somebody has come meanwhile
            self._settle(self._not_running(backoff_s))
            if self._closing:
                break
            _log.warning("MCP server %s: %s; started again in %.1f s", self.name, reason, backoff_s)
            if self._entry.start != "kernel":
                self._keeper = None
                return
            await asyncio.sleep(backoff_s)
            self._starting = self._starting or asyncio.get_running_loop().create_future()
        self.state = "stopped"

    def _backoff(self, ran: bool, seconds: float) -> float:
        """How long to wait after an end: not at all after the first of one that ran, then twice as long each time."""
        if seconds > _HEALTHY_S:
            self._failures = 0
        self._failures = min(self._failures + 1, 16)
        doubled = self._failures - (2 if ran else 1)
        return min(_BACKOFF_S * 2**doubled, _LONGEST_BACKOFF_S) if doubled >= 0 else 0.0

    async def _once(self) -> str:
        """Run one connection to its end; gives the reason of that. Never raises but when it is cancelled."""
        self.state = "starting"
        self.starts += 1
        connection = Connection(self._transport)
        try:
            async with connection.opened(self._entry.start_timeout_s):
                await self._first_sight(connection)
                self._connection, self.state, self.error = connection, "running", ""
                if self._starting is not None and not self._starting.done():
                    self._starting.set_result(connection)
                self._starting = None
                await connection.wait()
        except TimeoutError:
            return connection.reason or f"it did not answer within {self._entry.start_timeout_s:g} s"
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever its program or its network makes of the session
            return connection.reason or _innermost(error)
        return connection.reason

    def _settle(self, error: AiosError) -> None:
        """Answer those who wait for the start."""
        if self._starting is not None and not self._starting.done():
            self._starting.set_exception(error)
            self._starting.exception()  # nobody may be waiting any more
        self._starting = None

    def _transport(self, ended: Callable[[str], None], /) -> AbstractAsyncContextManager[Any]:
        if self._start is None:
            return http_transport(self._entry.url, self._headers, ended)
        return StdioTransport(self.name, self._start, ended)

    async def _probe(self, connection: Connection) -> None:
        """After a call that was given up: a server that does not even list its tools has hung, and must go."""
        try:
            async with asyncio.timeout(_PROBE_S):
                await connection.relist()
        except TimeoutError:
            if not self._open:
                connection.end("it does not answer any more")
        except Exception as error:  # noqa: BLE001 - the next call will meet it
            _log.debug("MCP server %s cannot list its tools: %s", self.name, error)

    async def _told(self, asking: Any) -> None:
        """Await a listing; its errors name this server."""
        try:
            await asking
        except ToolError as error:
            raise ToolNotStarted(f"MCP server {self.name}: {error.message}", fix=self._look()) from error
        except Exception as error:
            why = f"MCP server {self.name} cannot list its tools: {_innermost(error)}"
            raise ToolNotStarted(why, fix=self._look()) from error

    def _not_running(self, wait_s: float) -> ToolNotStarted:
        return ToolNotStarted(
            f"MCP server {self.name} is not running: {self.error or 'it ended'}",
            fix=f"mend it ({self._place()}); `aios tools servers` tells how it is",
            retry_after_s=max(0.0, round(wait_s, 3)),
        )

    def _place(self) -> str:
        return self._entry.url or " ".join(self._entry.command)[:200]

    # --- what is approved -------------------------------------------------------------------------------------------

    async def _first_sight(self, connection: Connection) -> None:
        if self._entry.pin == "first" and self._pins.of(self.name) is None:
            await self._pins.approve(self.name, connection.listed.values(), FIRST_SIGHT)
            self._approved()

    def _check(self, connection: Connection, tool: str) -> None:
        approved = self._pins.of(self.name)
        pinned = approved.tools.get(tool) if approved is not None else None
        listed = connection.listed.get(tool)
        if listed is None:
            raise ToolNotStarted(f"MCP server {self.name} does not offer {tool!a} any more", fix=self._look())
        if pinned is None:
            raise self._unapproved(f"the tool {self.name}/{tool} was never approved")
        if changed := changed_fields(pinned, listed):
            raise self._unapproved(
                f"MCP server {self.name} has changed {' and '.join(changed)} of {tool!a} since it was approved"
            )

    def _unapproved(self, what: str) -> ToolUnapproved:
        return ToolUnapproved(what, fix=f"{self._look()}, then aios tools approve {self.name}")

    def _look(self) -> str:
        return f"aios tools diff {self.name}"


def _innermost(error: BaseException) -> str:
    """The first error within groups, in words."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    if isinstance(error, AiosError):
        return error.message
    return f"{type(error).__name__}: {str(error)[:500]}"
