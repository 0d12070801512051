"""MCP in the environment that nox has installed (groups.toml): servers of its `mcp` package as tools of this kernel."""

from __future__ import annotations

import os
import subprocess

import pytest

from .conftest import Host
from .library import check_library_server, library_server

VERSION = "import importlib.metadata; print(importlib.metadata.version('mcp'))"
PROTOCOLS = {"1": "2025-11-25", "2": "2026-07-28"}


@pytest.fixture
def python() -> str:
    found = os.environ.get("OUTSIDE_PYTHON")
    if not found:
        pytest.skip("needs an environment of its own: make test-environments")
    return found


def protocol_of(python: str) -> str:
    """What servers of that environment speak."""
    done = subprocess.run([python, "-c", VERSION], capture_output=True, text=True, check=True)
    return PROTOCOLS[done.stdout.partition(".")[0]]


@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_a_server_of_another_version(host: Host, python: str, transport: str) -> None:
    with library_server(python, host.folder, transport) as entry:
        await check_library_server(host, entry, protocol_of(python))
