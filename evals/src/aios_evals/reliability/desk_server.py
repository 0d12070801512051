"""A small MCP server on standard input and output: `desk_server.py FILE`, which lists the tools that the file has now.

The standard library only: it starts with every kernel that is killed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def answer(request: dict[str, Any], listed: Path) -> dict[str, Any]:
    """The result of a request, or its error."""
    if request["method"] == "initialize":
        server = {"name": "desk", "version": "1"}
        return {"result": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": server}}
    if request["method"] == "tools/list":
        described = json.loads(listed.read_bytes())
        schema = {"type": "object"}
        tools = [{"name": name, "description": text, "inputSchema": schema} for name, text in described.items()]
        return {"result": {"tools": tools}}
    return {"error": {"code": -32601, "message": f"no {request['method']}"}}


def main() -> None:
    """Serve until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request and "method" in request:
            reply = {"jsonrpc": "2.0", "id": request["id"]} | answer(request, Path(sys.argv[1]))
            print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
