"""MCP servers as real processes, and a registry that hosts their tools."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from aios_kernel.syscalls import ToolInvoke
from aios_kernel.tools import ToolRegistry
from aios_kernel.tools.file import McpEntry
from aios_kernel.tools.mcp.pins import Pins
from aios_kernel.tools.mcp.source import McpTools

RAW = Path(__file__).with_name("raw_server.py")
NAMES = (
    "echo", "env", "fail", "many", "hang", "freeze", "die", "huge", "endless", "flood", "malformed", "prints", "wrong",
    "change",
)  # fmt: skip


def defined(name: str, **more: Any) -> dict[str, Any]:
    """A tool as a server lists it."""
    return {"name": name, "description": f"It can {name}.", "inputSchema": {"type": "object"}, **more}


class Host:
    """A registry with MCP servers; `raw` is the one of raw_server.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry: ToolRegistry | None = None
        self.write(
            [{"name": name, "description": f"It can {name}.", "inputSchema": {"type": "object"}} for name in NAMES]
        )

    def write(self, definitions: list[dict[str, Any]]) -> None:
        """What the raw server lists from now on."""
        (self.folder / "tools.json").write_text(json.dumps(definitions))

    def raw(self, **more: Any) -> McpEntry:
        return McpEntry(**{"command": [sys.executable, str(RAW), str(self.folder)], "pin": "first", **more})

    async def start(self, **entries: McpEntry) -> McpTools:
        """Host these servers; waits until those that are pinned at first sight have been seen."""
        source = McpTools(entries, Pins(self.folder / "mcp.db"), self.folder)
        self.registry = ToolRegistry(sources={"mcp": source})
        await self.registry.start()
        await until(lambda: all(self.seen(source, name, entry) for name, entry in entries.items()))
        return source

    def seen(self, source: McpTools, name: str, entry: McpEntry) -> bool:
        (info,) = [info for info in source.infos() if info.name == name]
        assert self.registry is not None
        offered = any(spec.name.startswith(f"{name}/") for spec in self.registry.specs())
        return entry.pin != "first" or offered or info.state == "failed"

    async def close(self) -> None:
        if self.registry is not None:
            await self.registry.close()
            self.registry = None

    async def call(self, name: str, /, timeout_s: float | None = 10, **arguments: Any) -> str:
        assert self.registry is not None
        call = ToolInvoke(name=name, arguments=json.dumps(arguments), timeout_s=timeout_s)
        return (await self.registry.call(call)).content

    def received(self) -> list[dict[str, Any]]:
        """All that the raw server was sent."""
        return [json.loads(line) for line in (self.folder / "received.jsonl").read_text().splitlines()]


async def until(what: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is so."""
    ends_at = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends_at, "it never came to be"
        await asyncio.sleep(0.02)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncGenerator[Host, None]:
    made = Host(tmp_path)
    yield made
    await made.close()
