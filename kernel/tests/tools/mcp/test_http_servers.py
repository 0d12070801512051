"""MCP servers at an URL that misbehave, over real sockets."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from aios_kernel.errors import ToolError, ToolTimeout
from aios_kernel.tools.file import McpEntry

from .conftest import Host, until


@pytest.fixture
def url() -> Generator[str, None, None]:
    command = [sys.executable, str(Path(__file__).with_name("raw_http.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("tool", "reason"),
    [
        ("huge", "more than 16,777,216 bytes"),
        ("endless", "more than 16,777,216 bytes"),
        ("flood", "without end"),
        ("malformed", "Failed to parse JSON response"),
        ("packed", "asked not to pack"),
        ("fault", "error response"),
        ("elsewhere", "not followed"),
        ("drop", "raw/drop"),
        ("cut", "ended without a response"),
    ],
)
async def test_what_it_does_costs_that_call(host: Host, url: str, tool: str, reason: str) -> None:
    source = await host.start(raw=McpEntry(url=url, pin="first"))
    await until(lambda: source.infos()[0].protocol == "2025-06-18")
    with pytest.raises(ToolError, match=reason):
        await host.call(f"raw/{tool}", timeout_s=60)
    assert json.loads(await host.call("raw/echo", timeout_s=60, a=1)) == {"a": 1}


async def test_a_hung_call_costs_itself(host: Host, url: str) -> None:
    source = await host.start(raw=McpEntry(url=url, pin="first"))
    hung = asyncio.create_task(host.call("raw/hang", timeout_s=1))
    assert await host.call("raw/echo") == "{}"
    with pytest.raises(ToolTimeout):
        await hung
    assert await host.call("raw/echo") == "{}"
    assert source.infos()[0].starts == 1


async def test_headers_come_from_the_environment(host: Host, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_AUTH", "Bearer abc")
    await host.start(raw=McpEntry(url=url, pin="first", headers={"Authorization": "SEARCH_AUTH"}))
    seen = json.loads(await host.call("raw/headers"))
    assert seen["authorization"] == "Bearer abc"
    assert seen["accept-encoding"] == "identity"
