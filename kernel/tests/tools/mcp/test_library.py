"""Servers of the `mcp` package that is installed here (2.x), by both transports; 1.x is in tests/environments."""

from __future__ import annotations

import sys

import pytest

from aios_kernel.errors import ToolError, ToolNotStarted
from aios_kernel.tools.file import McpEntry

from .conftest import Host
from .library import check_library_server, library_server


@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_a_server_of_today(host: Host, transport: str) -> None:
    with library_server(sys.executable, host.folder, transport) as entry:
        await check_library_server(host, entry, "2026-07-28")


async def test_an_url_where_nobody_is(host: Host) -> None:
    source = await host.start(lib=McpEntry(url="http://127.0.0.1:9/mcp", pin="first"))
    assert "ConnectError" in source.infos()[0].error
    with pytest.raises(ToolNotStarted):
        await source.review("lib")


async def test_a_server_at_an_url_is_found_again(host: Host) -> None:
    with library_server(sys.executable, host.folder, "http") as entry:
        await host.start(lib=entry)
        assert "Hello" in await host.call("lib/greet", name="kiwi")
    with pytest.raises(ToolError):
        await host.call("lib/greet", name="kiwi")
    assert host.registry is not None
