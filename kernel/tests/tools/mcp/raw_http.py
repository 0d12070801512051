"""An MCP server over HTTP without any library, which misbehaves: `raw_http.py`. It prints its URL."""

from __future__ import annotations

import gzip
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAMES = (
    "echo", "headers", "huge", "endless", "flood", "malformed", "packed", "hang", "fault", "elsewhere", "drop", "cut",
)  # fmt: skip
NOTE = b'data: {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}}\n\n'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.reply(405, b"")

    def do_DELETE(self) -> None:
        self.reply(200, b"")

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        method = message.get("method")
        if "id" not in message:
            self.reply(202, b"")
        elif method == "initialize":
            server = {"name": "raw", "version": "1"}
            self.answer(message, {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": server})
        elif method == "tools/list":
            self.answer(message, {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in NAMES]})
        elif method == "tools/call":
            name = message["params"]["name"]
            getattr(self, "headers_" if name == "headers" else name)(message)
        else:
            error = {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "no"}}
            self.reply(200, json.dumps(error).encode())

    def answer(self, message: dict[str, Any], result: dict[str, Any]) -> None:
        self.reply(200, json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode())

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin(self, kind: str) -> None:
        """A body that ends with the connection."""
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True

    # --- the tools --------------------------------------------------------------------------------------------------

    def echo(self, message: dict[str, Any]) -> None:
        text = json.dumps(message["params"].get("arguments", {}))
        self.answer(message, {"content": [{"type": "text", "text": text}]})

    def headers_(self, message: dict[str, Any]) -> None:
        text = json.dumps({name.lower(): value for name, value in self.headers.items()})
        self.answer(message, {"content": [{"type": "text", "text": text}]})

    def huge(self, message: dict[str, Any]) -> None:
        self.answer(message, {"content": [{"type": "text", "text": "x" * (17 << 20)}]})

    def endless(self, message: dict[str, Any]) -> None:
        self.begin("application/json")
        while True:
            self.wfile.write(b" " * 65536)

    def flood(self, message: dict[str, Any]) -> None:
        self.begin("text/event-stream")
        while True:
            self.wfile.write(NOTE * 100)

    def malformed(self, message: dict[str, Any]) -> None:
        self.reply(200, b'{"jsonrpc": "2.0", "id"')

    def packed(self, message: dict[str, Any]) -> None:
        self.reply(200, gzip.compress(b" " * (64 << 20)), content_encoding="gzip")

    def hang(self, message: dict[str, Any]) -> None:
        time.sleep(600)

    def fault(self, message: dict[str, Any]) -> None:
        self.reply(500, b"")

    def elsewhere(self, message: dict[str, Any]) -> None:
        self.reply(307, b"", location="http://127.0.0.2:9/mcp")

    def drop(self, message: dict[str, Any]) -> None:
        self.close_connection = True
        self.connection.close()

    def cut(self, message: dict[str, Any]) -> None:
        self.begin("text/event-stream")
        self.wfile.write(NOTE)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}/mcp", flush=True)
    server.serve_forever()
