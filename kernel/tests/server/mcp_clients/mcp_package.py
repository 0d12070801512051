"""The `mcp` package's own client session, of 1.x and 2.x: `mcp_package.py stdio COMMAND... | http URL TOKEN`."""

import asyncio
import json
import os
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

try:
    from mcp.client.streamable_http import streamablehttp_client
except ImportError:
    streamablehttp_client = None


def transport():
    if sys.argv[1] == "stdio":
        return stdio_client(StdioServerParameters(command=sys.argv[2], args=sys.argv[3:], env=dict(os.environ)))
    headers = {"Authorization": f"Bearer {sys.argv[3]}"}
    if streamablehttp_client is not None:
        return streamablehttp_client(sys.argv[2], headers=headers)
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    return streamable_http_client(sys.argv[2], http_client=httpx2.AsyncClient(headers=headers))


async def main() -> None:
    async with transport() as streams, ClientSession(streams[0], streams[1]) as session:
        await session.initialize()
        tools = [tool.name for tool in (await session.list_tools()).tools]
        await session.call_tool("memory_add", {"text": "The kiwi costs 12.5."})
        found = await session.call_tool("memory_search", {"query": "kiwi"})
        base = await session.call_tool("paths__base", {"p": "/srv/notes.txt"})
        print(json.dumps({"tools": tools, "found": found.content[0].text, "base": base.content[0].text}))


asyncio.run(main())
