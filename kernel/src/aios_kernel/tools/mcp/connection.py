"""One connection to a server, from the handshake to its end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, final

from mcp import Client, MCPError
from mcp.client.subscriptions import ToolsListChanged
from mcp_types import CONNECTION_CLOSED, CallToolResult, Implementation, ToolListChangedNotification

from aios_kernel.errors import ToolError
from aios_kernel.tools.mcp.definition import Definition
from aios_kernel.tools.mcp.listing import list_definitions
from aios_kernel.tools.mcp.result import text_of

_RELIST_S: Final = 60.0
"""How old a list may be before a call: a server need not say that it has changed."""


_CLOSED: Final = "Connection closed"
"""What the package says when the connection is at its end; by HTTP one answer alone can be cut off, too."""


class MakeTransport(Protocol):
    """Makes a transport that reports its end."""

    def __call__(self, ended: Any, /) -> AbstractAsyncContextManager[Any]:
        """`ended` takes the reason in words."""
        ...


@final
class Connection:
    """A session with a server. Entered and left by one task; used by any of its loop.

    Attributes:
        listed: the server's tools as it listed them last.
    """

    def __init__(self, make: MakeTransport) -> None:
        self.listed: Mapping[str, Definition] = {}
        self.reason = ""
        self._over = asyncio.Event()
        self._listing = asyncio.Lock()
        self._listed_s = 0.0
        self._stale = True
        self._client = Client(
            make(self.end),
            cache=None,
            message_handler=self._hear,
            client_info=Implementation(name="aios", version=importlib.metadata.version("aios-kernel")),
        )

    @contextlib.asynccontextmanager
    async def opened(self, timeout_s: float):
        """Shake hands and list the tools; at the end of the block close the session and what carries it.

        Raises:
            TimeoutError: that took longer than `timeout_s`.
            Exception: what the transport or the `mcp` package raises, perhaps in a group.
        """
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(timeout_s):
                await stack.enter_async_context(self._client)
                await self.relist()
            if self._announces():
                follower = asyncio.create_task(self._follow())
                stack.callback(follower.cancel)
            yield self

    @property
    def protocol(self) -> str:
        """The version of the protocol that both speak."""
        return self._client.protocol_version

    def end(self, reason: str) -> None:
        """Let it end; what is open on it fails."""
        self.reason = self.reason or reason
        self._over.set()

    async def wait(self) -> None:
        """Wait for its end."""
        await self._over.wait()

    @property
    def over(self) -> bool:
        """Whether it has ended or is about to."""
        return self._over.is_set()

    async def fresh(self) -> None:
        """List again if the server has announced a change, or the list has grown old."""
        if self._stale or asyncio.get_running_loop().time() - self._listed_s > _RELIST_S:
            await self.relist()

    async def relist(self) -> None:
        """List the tools; callers that come meanwhile share the answer."""
        loop, asked_s = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        async with self._listing:
            if self._listed_s > asked_s and not self._stale:
                return
            began_s, self._stale = loop.time(), False  # an announcement that comes meanwhile counts
            try:
                self.listed = await list_definitions(self._client)
            except BaseException:
                self._stale = True
                raise
            self._listed_s = began_s

    async def call(self, label: str, tool: str, arguments: dict[str, Any]) -> str:
        """Run a tool; cancelled, it tells the server.

        Raises:
            ToolError: the tool or the server failed, or the answer is none.
        """
        try:
            result = await self._client.call_tool(tool, arguments)
        except MCPError as error:
            if error.code == CONNECTION_CLOSED and (self.over or error.message == _CLOSED):
                self.end("it closed the connection")
                raise ToolError(f"the MCP server ended while tool {label!a} ran: {self.reason}") from error
            raise ToolError(f"tool {label!a} failed: {error.message[:2000]}") from error
        except (ToolError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise ToolError(
                f"the MCP server answered tool {label!a} with what is no result: {str(error)[:500]}"
            ) from error
        assert isinstance(result, CallToolResult)
        return text_of(label, result)

    def _announces(self) -> bool:
        """Whether changes have to be subscribed to: since 2026-07-28 they do not come by themselves."""
        tools = self._client.server_capabilities.tools
        return self._client.session.discover_result is not None and tools is not None and bool(tools.list_changed)

    async def _follow(self) -> None:
        try:
            async with self._client.listen(tools_list_changed=True) as changes:
                async for change in changes:
                    if isinstance(change, ToolsListChanged):
                        self._stale = True
        except Exception:  # noqa: BLE001 - without the announcements the list is asked for by its age
            self._stale = True

    async def _hear(self, message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._stale = True
