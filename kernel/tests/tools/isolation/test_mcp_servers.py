"""MCP servers at isolation levels: the attacks of commands and functions, made by a server; its network; its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aios_kernel.errors import AiosError, ConfigError, ToolNotStarted, Unsupported
from aios_kernel.syscalls import ToolInvoke
from aios_kernel.tools import ToolRegistry
from aios_kernel.tools.file import McpEntry, McpToolPolicy
from aios_kernel.tools.isolation import places
from aios_kernel.tools.isolation.sandbox import Sandbox
from aios_kernel.tools.mcp.pins import Pins
from aios_kernel.tools.mcp.source import McpTools

from .conftest import runner_of
from .test_probes import ATTACKS, PROBES, SMALL, Target, command, target

__all__ = ["target"]
SERVER = Path(__file__).with_name("hostile_server.py").resolve()
LEVELS = ["subprocess", "sandbox"]


class Host:
    """A registry with one server, called `bad`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = ToolRegistry()

    async def start(self, entry: McpEntry) -> McpTools:
        """Host a server; waits until its tools have been seen, or it has failed."""
        source = McpTools({"bad": entry}, Pins(self.folder / "mcp.db"), self.folder)
        self.registry = ToolRegistry(sources={"mcp": source})
        await self.registry.start()
        await until(lambda: bool(self.registry.specs()) or source.infos()[0].state == "failed")
        return source

    async def close(self) -> None:
        registry, self.registry = self.registry, ToolRegistry()
        await registry.close()

    async def call(self, name: str, **arguments: Any) -> str:
        call = ToolInvoke(name=f"bad/{name}", arguments=json.dumps(arguments), timeout_s=60)
        return (await self.registry.call(call)).content


@pytest.fixture
async def host(tmp_path: Path) -> AsyncGenerator[Host, None]:
    made = Host(tmp_path)
    yield made
    await made.close()


async def until(what: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.02)


def hostile(level: str, mark: str = "mark", *, more: dict[str, Any] | None = None, **confinement: Any) -> McpEntry:
    """The hostile server at a level."""
    kept = {"read": [str(SERVER), *SMALL.read]} | confinement
    return McpEntry(
        command=[places.interpreter(), "-I", "-S", str(SERVER), str(PROBES), mark],
        pin="first",
        isolation=level,  # type: ignore[arg-type]
        confinement=msgspec.structs.replace(SMALL, **kept),
        **more or {},
    )


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    runner_of(request.param).stop()
    return str(request.param)


@pytest.mark.timeout(300)
async def test_the_attacks_of_a_server_get_as_far_as_the_document_says(host: Host, level: str, target: Target) -> None:
    """One server makes them all; that they succeed without isolation is tested where the probes are."""
    await host.start(hostile(level))
    wrong: list[str] = []
    for attack in ATTACKS:
        if attack.needs_root and os.geteuid() != 0:
            continue
        arguments = json.loads(command(attack, target)[-1])
        found = await host.call("attack", probe=attack.probe, arguments=arguments)
        wanted = "GOT" if level in attack.through else "BLOCKED: .+"
        if not re.fullmatch(wanted, found):
            wrong.append(f"{attack.words}: {found}")
        target.check()
    assert wrong == []
    tool = host.registry.tool("bad/attack")
    assert tool is not None
    assert tool.isolation == level, "the audit log tells it"


async def test_a_confined_server_sees_nothing_of_the_kernels_environment(
    host: Host, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CITY_KEY", "for the server")
    monkeypatch.setenv("OTHER_KEY", "secret")
    await host.start(hostile(level, more={"env": ["CITY_KEY"]}))
    seen = json.loads(await host.call("environment"))
    assert seen["CITY_KEY"] == "for the server"
    assert "secret" not in seen.values()
    assert seen["HOME"] != os.environ.get("HOME")
    assert not any(name.startswith("AIOS") for name in seen)


async def test_a_sandboxed_server_reaches_what_is_listed_and_nobody_else(host: Host) -> None:
    runner_of("sandbox").stop()
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        await writer.drain()
        writer.close()

    servers = [await asyncio.start_server(serve, "127.0.0.1", 0) for _ in range(2)]
    listed, other = (server.sockets[0].getsockname()[1] for server in servers)
    await host.start(hostile("sandbox", network=[f"127.0.0.1:{listed}"]))
    assert await host.call("fetch", url=f"http://127.0.0.1:{listed}/") == "hi"
    assert "not on the tool's network list" in await host.call("fetch", url=f"http://127.0.0.1:{other}/")
    assert len(asked) == 1
    await host.close()
    for server in servers:
        server.close()
        await server.wait_closed()


async def test_what_a_confined_server_starts_ends_with_it(host: Host, level: str) -> None:
    mark = f"mark-{secrets.token_hex(8)}"
    await host.start(hostile(level, mark))
    assert await host.call("leave") == "left"
    assert running(mark)
    await host.close()
    assert not running(mark)


async def test_a_confined_server_that_is_killed_says_how_and_is_started_again(host: Host, level: str) -> None:
    mark = f"mark-{secrets.token_hex(8)}"
    source = await host.start(hostile(level, mark))
    assert await host.call("leave") == "left"
    for pid in running(mark):
        with contextlib.suppress(ProcessLookupError):  # it went with the one before
            os.kill(pid, signal.SIGKILL)
    await until(lambda: source.infos()[0].state == "failed")
    assert "killed by SIGKILL" in source.infos()[0].error or "exit status 137" in source.infos()[0].error
    assert not running(mark)
    assert await host.call("leave") == "left"
    assert source.infos()[0].starts == 2


async def test_a_program_that_is_not_there_or_does_not_start(host: Host, level: str) -> None:
    gone = McpEntry(command=["/no/such/program"], isolation=level)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"mcp.bad: .*no program"):
        await host.start(gone)
    silent = McpEntry(command=["/bin/false"], pin="first", isolation=level)  # type: ignore[arg-type]
    source = await host.start(silent)
    with pytest.raises(ToolNotStarted, match="exit status 1"):
        await source.review("bad")


KERNEL = """
import asyncio, os, sys
from pathlib import Path
import msgspec
from aios_kernel.tools import ToolRegistry
from aios_kernel.tools.file import McpEntry
from aios_kernel.tools.mcp.pins import Pins
from aios_kernel.tools.mcp.source import McpTools

async def main():
    home = Path(sys.argv[1])
    entry = msgspec.json.decode(sys.argv[2], type=McpEntry)
    registry = ToolRegistry(sources={"mcp": McpTools({"bad": entry}, Pins(home / "mcp.db"), home)})
    await registry.start()
    while not registry.specs():
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_with_a_kernel_that_is_killed_it_dies(tmp_path: Path, level: str) -> None:
    """A server that is trusted may stay; one that is confined cannot."""
    mark = f"mark-{secrets.token_hex(8)}"
    entry = msgspec.json.encode(hostile(level, mark)).decode()
    with subprocess.Popen([sys.executable, "-c", KERNEL, str(tmp_path), entry], stdout=subprocess.PIPE) as kernel:
        assert kernel.stdout is not None
        assert kernel.stdout.readline() == b"ready\n"
        assert len(running(mark)) > 1, "the kernel itself has the mark among its arguments"
        kernel.kill()
    ends_at = time.monotonic() + 30
    while running(mark):
        assert time.monotonic() < ends_at
        time.sleep(0.02)


def test_what_cannot_be_kept_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(error: type[AiosError], match: str, entry: McpEntry) -> None:
        with pytest.raises(error, match=match):
            McpTools({"bad": entry}, Pins(host.folder / "mcp.db"), host.folder)

    refused(Unsupported, "container", hostile("container"))
    refused(
        ConfigError,
        "is that of its server",
        hostile("subprocess", more={"tools": {"fetch": McpToolPolicy(isolation="sandbox")}}),
    )
    url = McpEntry(url="http://127.0.0.1:1/mcp", isolation="sandbox")
    refused(ConfigError, "servers that are started", url)
    runner_of("subprocess").stop()
    refused(ConfigError, "has no network", hostile("subprocess", network=["example.org:443"]))
    home = hostile("subprocess", read=[str(host.folder)])
    refused(ConfigError, "where the kernel keeps its data", home)

    def missing(_: Sandbox) -> None:
        raise Unsupported("level sandbox needs bwrap, which is not installed", fix="apt install bubblewrap")

    monkeypatch.setattr(Sandbox, "check", missing)
    refused(Unsupported, "needs bwrap", hostile("sandbox"))


def running(mark: str) -> list[int]:
    """Processes that have a mark among their arguments; zombies have none."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
