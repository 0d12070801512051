"""The OpenAI Agents SDK's MCP servers on the kernel. Arguments as of mcp_package.py."""

import asyncio
import json
import os
import sys

from agents.mcp import MCPServerStdio, MCPServerStreamableHttp


def server():
    if sys.argv[1] == "stdio":
        params = {"command": sys.argv[2], "args": sys.argv[3:], "env": dict(os.environ)}
        return MCPServerStdio(params=params, client_session_timeout_seconds=30)
    headers = {"Authorization": f"Bearer {sys.argv[3]}"}
    return MCPServerStreamableHttp(params={"url": sys.argv[2], "headers": headers})


async def main() -> None:
    async with server() as aios:
        tools = [tool.name for tool in await aios.list_tools()]
        await aios.call_tool("memory_add", {"text": "The kiwi costs 12.5."})
        found = (await aios.call_tool("memory_search", {"query": "kiwi"})).content[0].text
        base = (await aios.call_tool("paths__base", {"p": "/srv/notes.txt"})).content[0].text
        print(json.dumps({"tools": tools, "found": found, "base": base}))


asyncio.run(main())
