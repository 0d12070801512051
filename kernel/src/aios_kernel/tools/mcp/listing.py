"""Asking a server for its tools: page by page, and not without end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aios_kernel.errors import ToolError
from aios_kernel.tools.mcp.definition import MOST_TOOLS, Definition, definition_of

if TYPE_CHECKING:
    from mcp import Client

_MOST_PAGES: Final = 100


async def list_definitions(client: Client) -> dict[str, Definition]:
    """All tools that a server lists, by name.

    Raises:
        ToolError: more than 1,000 of them or 100 pages, one name twice, or a definition that is too large.
    """
    found: dict[str, Definition] = {}
    cursor: str | None = None
    for _ in range(_MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            if tool.name in found:
                raise ToolError(f"it lists the tool {tool.name[:80]!a} twice")
            found[tool.name] = definition_of(tool)
            if len(found) > MOST_TOOLS:
                raise ToolError(f"it lists more than {MOST_TOOLS:,} tools")
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise ToolError(f"its list of tools has more than {_MOST_PAGES} pages")
