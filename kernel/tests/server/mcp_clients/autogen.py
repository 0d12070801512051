"""AutoGen's McpWorkbench on the kernel. Arguments as of mcp_package.py."""

import asyncio
import json
import os
import sys

from autogen_ext.tools.mcp import McpWorkbench, StdioServerParams, StreamableHttpServerParams


def params():
    if sys.argv[1] == "stdio":
        return StdioServerParams(command=sys.argv[2], args=sys.argv[3:], env=dict(os.environ), read_timeout_seconds=30)
    return StreamableHttpServerParams(url=sys.argv[2], headers={"Authorization": f"Bearer {sys.argv[3]}"})


async def main() -> None:
    async with McpWorkbench(params()) as bench:
        tools = [tool["name"] for tool in await bench.list_tools()]
        await bench.call_tool("memory_add", {"text": "The kiwi costs 12.5."})
        found = (await bench.call_tool("memory_search", {"query": "kiwi"})).to_text()
        base = (await bench.call_tool("paths__base", {"p": "/srv/notes.txt"})).to_text()
        print(json.dumps({"tools": tools, "found": found, "base": base}))


asyncio.run(main())
