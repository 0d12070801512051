"""The MCP servers of the tools file as a source of the registry: approved tools, and the sessions behind them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, final

import msgspec

from aios_kernel._names import shown, split_name
from aios_kernel.config import Config, home_of
from aios_kernel.errors import (
    AiosError,
    ConfigError,
    InvalidRequest,
    NotFound,
    ToolError,
    ToolUnapproved,
    Unsupported,
)
from aios_kernel.syscalls import McpServerInfo, PinnedTool, ToolChange, ToolSpec
from aios_kernel.tools.arguments import ArgumentChecker
from aios_kernel.tools.confinement import UNSHARED
from aios_kernel.tools.file import McpEntry, ToolsFile
from aios_kernel.tools.hosted import HostedTool, Launch
from aios_kernel.tools.isolation.confine import Confiner
from aios_kernel.tools.isolation.level import Level
from aios_kernel.tools.isolation.places import PATH
from aios_kernel.tools.isolation.sandbox import Sandbox
from aios_kernel.tools.isolation.subprocess_level import Subprocess
from aios_kernel.tools.mcp.confined import ConfinedProcess
from aios_kernel.tools.mcp.definition import Definition, changes, listing_digest
from aios_kernel.tools.mcp.hidden import visible
from aios_kernel.tools.mcp.http import http_headers
from aios_kernel.tools.mcp.pins import Approved, Pins
from aios_kernel.tools.mcp.process import PASSED_CONFINED, ServerProcess, StartProcess, server_environment
from aios_kernel.tools.mcp.server import McpServer
from aios_kernel.tools.mcp.thread import LoopThread
from aios_kernel.tools.python import IDEMPOTENCY_KEY
from aios_kernel.tools.source import Offer

_log = logging.getLogger(__name__)
PINS: Final = "mcp.db"


def mcp_tools(config: Config, file: ToolsFile) -> McpTools:
    """The source of `[mcp]`. Raises ConfigError, Unsupported for entries that cannot be served."""
    return McpTools(file.mcp, Pins(home_of(config) / PINS), home_of(config))


_LEVELS: Final[dict[str, Callable[[], Level]]] = {"subprocess": Subprocess, "sandbox": Sandbox}
"""The isolation levels at which a server can be run."""


@final
class McpTools:
    """All MCP servers of a kernel. What it lists is what is approved: no server is started to be listed.

    Args:
        entries: from the tools file.
        pins: what is approved.
        home: the kernel's data directory, which no confined server may read.

    Raises:
        ConfigError: an entry that is wrong.
        Unsupported: an isolation level that this machine lacks.
    """

    def __init__(self, entries: dict[str, McpEntry], pins: Pins, home: Path) -> None:
        self._entries = entries
        self._pins = pins
        self._home = home
        self._confiners: dict[str, Confiner] = {}
        self._thread = LoopThread("aios-mcp")
        self._offer: Offer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Task[None]] = set()
        try:
            self._servers = {name: self._server(name, entry) for name, entry in entries.items()}
        except AiosError:
            self._stop_confiners()
            pins.close()
            raise

    def tools(self) -> Sequence[HostedTool]:
        """The approved tools of all servers."""
        return [
            tool
            for name, entry in self._entries.items()
            if (approved := self._pins.of(name)) is not None
            for definition in approved.tools.values()
            if (tool := self._hosted(name, entry, definition)) is not None
        ]

    async def start(self, offer: Offer) -> None:
        """Start the servers that the file wants started, and those whose tools nobody knows yet."""
        self._offer, self._loop = offer, asyncio.get_running_loop()
        for name, entry in self._entries.items():
            unseen = self._pins.of(name) is None
            if unseen and entry.pin != "first":
                _log.warning("the tools of MCP server %s are not approved yet: aios tools approve %s", name, name)
            if entry.start == "kernel" or (unseen and entry.pin == "first"):
                task = asyncio.create_task(self._begin(name))
                self._waiting.add(task)
                task.add_done_callback(self._waiting.discard)

    async def close(self) -> None:
        """End the sessions, then their processes, their loop and the database."""
        for task in self._waiting:
            task.cancel()
        with contextlib.suppress(AiosError):  # ended before it was begun
            await self._thread.run(self._close_all())
        await asyncio.to_thread(self._thread.close)
        await asyncio.to_thread(self._stop_confiners)
        await asyncio.to_thread(self._pins.close)

    def _stop_confiners(self) -> None:
        for confiner in self._confiners.values():
            confiner.stop()

    # --- what people ask --------------------------------------------------------------------------------------------

    def infos(self) -> list[McpServerInfo]:
        """How each server is."""
        return [server.info(self._pins.of(name)) for name, server in self._servers.items()]

    def pinned(self, server: str | None) -> list[PinnedTool]:
        """What is approved of a server, or of all. Raises NotFound."""
        names = self._servers if server is None else [self._known(server).name]
        return [
            PinnedTool(name, visible(tool), definition.digest(), visible(definition.description))
            for name in names
            if (approved := self._pins.of(name)) is not None
            for tool, definition in sorted(approved.tools.items())
        ]

    async def review(self, server: str) -> tuple[str, list[ToolChange]]:
        """Ask a server for its tools; gives the digest of the list and how it differs from what is approved.

        Raises:
            NotFound: no such server.
            ToolNotStarted: it cannot be started or reached, or its list is none.
        """
        listed = await self._thread.run(self._known(server).listed())
        approved = self._pins.of(server)
        return listing_digest(listed.values()), changes(approved.tools if approved is not None else {}, listed)

    async def approve(self, server: str, digest: str, by: str) -> Approved:
        """Pin what a server lists, if that is still what `digest` says.

        Raises:
            ToolUnapproved: it lists something else now.
            NotFound, ToolNotStarted: as `review`.
        """
        listed = await self._thread.run(self._known(server).listed())
        found = listing_digest(listed.values())
        if found != digest:
            raise ToolUnapproved(
                f"MCP server {server} lists something else than what was looked at ({found[:12]}, not {digest[:12]})",
                fix=f"aios tools diff {server}",
            )
        approved = await self._pins.approve(server, listed.values(), by)
        self._offer_all()
        return approved

    # --- inside -----------------------------------------------------------------------------------------------------

    def _server(self, name: str, entry: McpEntry) -> McpServer:
        _check(name, entry)
        try:
            start = self._starter(name, entry) if entry.command else None
            headers = http_headers(entry.headers, os.environ)
        except (ConfigError, ToolError) as error:
            raise ConfigError(f"mcp.{name}: {error.message}", fix=error.fix) from error
        return McpServer(name, entry, start=start, headers=headers, pins=self._pins, approved=self._offer_soon)

    def _starter(self, name: str, entry: McpEntry) -> StartProcess:
        """How a server's process is started, at its isolation level."""
        cwd = str(Path(entry.cwd).expanduser()) if entry.cwd else ""
        if entry.isolation == "trusted":
            env = server_environment(entry.env)
            return functools.partial(ServerProcess.start, entry.command, env, cwd or None)
        if entry.isolation not in _LEVELS:
            raise Unsupported(
                f'mcp.{name}: isolation "{entry.isolation}" is not offered for MCP servers',
                fix=f"use {' or '.join(_LEVELS)}",
            )
        if entry.isolation not in self._confiners:
            self._confiners[entry.isolation] = Confiner(_LEVELS[entry.isolation](), self._home)
        env = {"PATH": PATH} | server_environment(entry.env, passed=PASSED_CONFINED)
        launch = Launch(argv=entry.command, env=env, cwd=cwd)
        return functools.partial(
            ConfinedProcess.start, self._confiners[entry.isolation].server(name, launch, entry.confinement)
        )

    def _known(self, server: str) -> McpServer:
        found = self._servers.get(server)
        if found is None:
            raise NotFound(f"the tools file has no MCP server {shown(server)}", fix="aios tools servers")
        return found

    def _hosted(self, server: str, entry: McpEntry, definition: Definition) -> HostedTool | None:
        """A tool for the registry; None for one that cannot be: it must not cost the others theirs."""
        policy = entry.tools.get(definition.name, entry)
        spec = definition.spec(server)
        tool = HostedTool(
            spec=_without_key(spec) if policy.effects == "keyed" else spec,
            run=self._runner(self._servers[server], definition.name),
            isolation=entry.isolation,
            confined=True,  # its server is
            timeout_s=policy.timeout_s,
            expected_s=policy.expected_s,
            max_running=policy.max_running,
            exclusive=policy.exclusive,
            retry=policy.retry,
            effects=policy.effects,
            untrusted=policy.untrusted,
        )
        try:
            split_name(tool.spec.name, "tool name")
            ArgumentChecker(tool.spec)
            if policy.effects == "keyed" and tool.spec == spec:
                raise ConfigError('effects = "keyed" needs a tool with an argument idempotency_key')
        except AiosError as error:
            _log.warning("a tool of MCP server %s cannot be offered: %s", server, error.message)
            return None
        return tool

    def _runner(self, server: McpServer, tool: str) -> Any:
        async def run(**arguments: Any) -> str:
            return await self._thread.run(server.call(tool, arguments))

        return run

    async def _begin(self, name: str) -> None:
        try:
            await self._thread.run(_connect(self._servers[name]))
        except AiosError as error:
            _log.warning("MCP server %s: %s", name, error.message)

    def _offer_soon(self) -> None:
        """From the sessions' loop: tools have been pinned."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the kernel's loop is closed
                self._loop.call_soon_threadsafe(self._offer_all)

    def _offer_all(self) -> None:
        if self._offer is None:
            return
        try:
            self._offer(self.tools())
        except AiosError as error:
            _log.warning("the tools of the MCP servers cannot be offered: %s", error.message)

    async def _close_all(self) -> None:
        await asyncio.gather(*(server.close() for server in self._servers.values()))


async def _connect(server: McpServer) -> None:
    await server.connected()


def _without_key(spec: ToolSpec) -> ToolSpec:
    """What the model sees of a tool whose idempotency key the kernel gives."""
    properties: dict[str, Any] = spec.parameters.get("properties", {})
    others = {name: schema for name, schema in properties.items() if name != IDEMPOTENCY_KEY}
    required = [name for name in spec.parameters.get("required", []) if name != IDEMPOTENCY_KEY]
    if others == properties:
        return spec
    return msgspec.structs.replace(spec, parameters={**spec.parameters, "properties": others, "required": required})


def _check(name: str, entry: McpEntry) -> None:
    try:
        parts = split_name(name, "MCP server")
    except InvalidRequest as error:
        raise ConfigError(f"mcp.{name}: {error.message}", fix="rename it in the tools file") from error
    if len(parts) > 1:
        raise ConfigError(f"mcp.{name}: the name has a slash", fix="rename it in the tools file")
    if entry.url and entry.isolation != "trusted":
        raise ConfigError(f"mcp.{name}: isolation is of servers that are started", fix="leave it out beside `url`")
    for what, policy in (("", entry), *((f".tools.{tool}", policy) for tool, policy in entry.tools.items())):
        if what and (policy.isolation != "trusted" or policy.confinement != UNSHARED):
            raise ConfigError(f"mcp.{name}{what}: its isolation is that of its server", fix=f"say it of mcp.{name}")
        if policy.effects == "queryable":
            raise Unsupported(f"mcp.{name}{what}: MCP has no way to ask for a call's status", fix='effects = "once"')
    if entry.url and (entry.command or entry.env or entry.cwd):
        raise ConfigError(f"mcp.{name}: env and cwd are of servers that are started", fix="leave them out beside `url`")
    if entry.headers and not entry.url:
        raise ConfigError(f"mcp.{name}: headers are of servers at an URL", fix="leave them out beside `command`")
