"""langchain-mcp-adapters: the kernel's tools as LangChain's. Arguments as of mcp_package.py."""

import asyncio
import json
import os
import sys

from langchain_mcp_adapters.client import MultiServerMCPClient


def connection():
    if sys.argv[1] == "stdio":
        return {"transport": "stdio", "command": sys.argv[2], "args": sys.argv[3:], "env": dict(os.environ)}
    headers = {"Authorization": f"Bearer {sys.argv[3]}"}
    return {"transport": "streamable_http", "url": sys.argv[2], "headers": headers}


def text(content) -> str:
    return content if isinstance(content, str) else content[0]["text"]


async def main() -> None:
    tools = {tool.name: tool for tool in await MultiServerMCPClient({"aios": connection()}).get_tools()}
    await tools["memory_add"].ainvoke({"text": "The kiwi costs 12.5."})
    found = text(await tools["memory_search"].ainvoke({"query": "kiwi"}))
    base = text(await tools["paths__base"].ainvoke({"p": "/srv/notes.txt"}))
    print(json.dumps({"tools": list(tools), "found": found, "base": base}))


asyncio.run(main())
