"""MCP clients of other environments (groups.toml), unchanged, on the kernel's own server by stdio and HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from aios_kernel.mcp_front.own_tools import OWN_TOOLS

from .test_mcp import TOOLS, Served

CLIENTS = Path(__file__).with_name("mcp_clients")
GROUPS: dict[str, Any] = tomllib.loads(
    (Path(__file__).parents[3] / "tests" / "environments" / "groups.toml").read_text()
)


@pytest.fixture
def python() -> str:
    found = os.environ.get("OUTSIDE_PYTHON")
    if not found:
        pytest.skip("needs an environment of its own: make test-environments")
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "client" in metafunc.fixturenames:
        group = GROUPS.get(os.environ.get("OUTSIDE_GROUP", ""), {})
        metafunc.parametrize("client", group.get("clients", []))


def run(python: str, client: str, *arguments: str, **environment: str) -> None:
    done = subprocess.run(
        [python, str(CLIENTS / f"{client}.py"), *arguments],
        env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["tools"] == [*OWN_TOOLS, "paths__base", "wait"]
    assert "The kiwi costs 12.5." in seen["found"]
    assert "notes.txt" in seen["base"]


def test_over_http(python: str, client: str, tmp_path: Path) -> None:
    served = Served(tmp_path)
    try:
        run(python, client, "http", served.url, f"{served.token}:{client}")
        calls = {each.syscall for each in served.audit(client)}
        assert {"tool.list", "memory.add", "memory.search", "tool.call"} <= calls
    finally:
        served.connection.close()
        served.running.stop()


def test_over_stdio(python: str, client: str, tmp_path: Path) -> None:
    (tmp_path / "tools.toml").write_text(TOOLS)
    settings = {"AIOS_HOME": str(tmp_path), "AIOS_MODEL": "fake", "AIOS_EMBEDDER": "hash", "AIOS_VECTORS": "exact"}
    aios = str(Path(sys.executable).with_name("aios"))
    run(python, client, "stdio", aios, "mcp", "--agent", client, AIOS_GRACE_S="0.2", **settings)
