"""An MCP server without any library, which can be told to misbehave: `raw_server.py FOLDER`.

FOLDER/tools.json has what it lists; what it is sent is written to FOLDER/received.jsonl.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])


def send(message: object) -> None:
    sys.stdout.write((message if isinstance(message, str) else json.dumps(message)) + "\n")
    sys.stdout.flush()


def note(method: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value}], **more}


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The result, or None for a tool that does not answer."""
    if name == "echo":
        return text(json.dumps(arguments))
    if name == "env":
        return text(json.dumps(dict(os.environ)))
    if name == "fail":
        return text("no such city", isError=True)
    if name == "many":
        image = {"type": "image", "mimeType": "image/png", "data": "AAAA" * 100}
        link = {"type": "resource_link", "uri": "file:///a.txt", "name": "a"}
        file = {"type": "resource", "resource": {"uri": "file:///b.txt", "text": "inside"}}
        return {"content": [{"type": "text", "text": "one"}, image, link, file], "structuredContent": {"n": 1}}
    if name == "hang":
        return None
    if name == "freeze":
        time.sleep(3600)
    if name == "die":
        sys.stderr.write("I cannot go on\n")
        sys.stderr.flush()
        os._exit(3)
    if name == "huge":
        return text("x" * (17 * 1024 * 1024))
    if name == "endless":
        while True:
            sys.stdout.write("x" * 65536)
    if name == "flood":
        while True:
            send({**note("notifications/message"), "params": {"level": "info", "data": "x" * 100}})
    if name == "malformed":
        send('{"jsonrpc": "2.0", "id": 1, "result"')
    if name == "prints":
        send("Loading the model...")
        return text("loaded")
    if name == "wrong":
        return {"content": "no list"}
    if name == "change":
        definitions = json.loads((FOLDER / "tools.json").read_text())
        definitions[0]["description"] = arguments["to"]
        (FOLDER / "tools.json").write_text(json.dumps(definitions))
        send(note("notifications/tools/list_changed"))
        return text("changed")
    return text("unknown", isError=True)


def answer(request: dict[str, Any]) -> dict[str, Any] | None:
    method, params = request["method"], request.get("params", {})
    if method == "initialize":
        capabilities = {"tools": {"listChanged": True}}
        server = {"name": "raw", "version": "1"}
        return {"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": server}
    if method == "tools/list":
        if (FOLDER / "silent").exists():
            return None
        return {"tools": json.loads((FOLDER / "tools.json").read_text())}
    if method == "tools/call":
        return call(params["name"], params.get("arguments") or {})
    raise LookupError(method)


def main() -> None:
    with (FOLDER / "received.jsonl").open("a") as log:
        for line in sys.stdin:
            log.write(line)
            log.flush()
            message = json.loads(line)
            if "id" not in message or "method" not in message:
                continue
            try:
                result = answer(message)
            except LookupError as error:
                send({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": f"no {error}"}})
                continue
            if result is not None:
                send({"jsonrpc": "2.0", "id": message["id"], "result": result})


if __name__ == "__main__":
    main()
