"""The `tool.*` syscalls about MCP servers: how they are, and what of them is approved."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, cast

from aios_kernel import errors
from aios_kernel.calls import OpenCall
from aios_kernel.syscalls import (
    Count,
    McpServers,
    ToolApprove,
    ToolPinned,
    ToolPins,
    ToolReview,
    ToolReviewed,
    ToolServers,
)

if TYPE_CHECKING:
    from aios_kernel.kernel import Handler
    from aios_kernel.tools import ToolRegistry
    from aios_kernel.tools.mcp import McpTools


class McpService:
    """What people and programs may ask about the MCP servers of the tools file.

    Args:
        tools: the registry.
        guests: principals beside the one that the kernel belongs to; they may look and not approve.
    """

    def __init__(self, tools: ToolRegistry, guests: Collection[str]) -> None:
        self._tools = tools
        self._guests = guests

    def routes(self) -> dict[type, Handler]:
        """The handlers by syscall."""
        return {
            ToolServers: self._servers,
            ToolPins: self._pins,
            ToolReview: self._review,
            ToolApprove: self._approve,
        }

    def _servers(self, open_call: OpenCall, call: ToolServers) -> McpServers:
        source = self._source()
        return McpServers(servers=[] if source is None else source.infos())

    def _pins(self, open_call: OpenCall, call: ToolPins) -> ToolPinned:
        source = self._source() if call.name is None else self._needed()
        return ToolPinned(pins=[] if source is None else source.pinned(call.name))

    async def _review(self, open_call: OpenCall, call: ToolReview) -> ToolReviewed:
        digest, changes = await self._needed().review(call.name)
        return ToolReviewed(call.name, digest, changes)

    async def _approve(self, open_call: OpenCall, call: ToolApprove) -> Count:
        principal = open_call.program.principal
        if principal in self._guests:
            raise errors.AccessDenied(
                f"principal {principal} may not approve tools", fix="ask the user that the kernel belongs to"
            )
        return Count(len((await self._needed().approve(call.name, call.digest, principal)).tools))

    def _source(self) -> McpTools | None:
        return cast("McpTools | None", self._tools.source("mcp"))

    def _needed(self) -> McpTools:
        source = self._source()
        if source is None:
            raise errors.NotFound("the tools file has no MCP servers", fix="add [mcp.NAME] to the tools file")
        return source
