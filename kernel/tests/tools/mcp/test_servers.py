"""MCP servers that behave, misbehave, hang and die: each as a process, each with its own typed error."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aios_kernel.errors import ConfigError, ToolError, ToolNotStarted, ToolTimeout, Unsupported
from aios_kernel.tools.file import McpEntry, McpToolPolicy
from aios_kernel.tools.mcp.pins import Pins
from aios_kernel.tools.mcp.process import server_environment
from aios_kernel.tools.mcp.source import McpTools

from .conftest import Host, defined, until


async def test_tools_are_called_by_server_and_name(host: Host) -> None:
    await host.start(raw=host.raw())
    assert host.registry is not None
    specs = {spec.name: spec for spec in host.registry.specs()}
    assert specs["raw/echo"].description == "It can echo."
    assert json.loads(await host.call("raw/echo", a=1, name="x")) == {"a": 1, "name": "x"}
    tool = host.registry.tool("raw/echo")
    assert tool is not None
    assert tool.untrusted


async def test_policies_of_the_file_hold_for_single_tools(host: Host) -> None:
    policy = McpToolPolicy(effects="idempotent", timeout_s=7, untrusted=False)
    await host.start(raw=host.raw(exclusive="raw", tools={"echo": policy}))
    assert host.registry is not None
    echo, fail = host.registry.tool("raw/echo"), host.registry.tool("raw/fail")
    assert echo is not None
    assert fail is not None
    assert (echo.effects, echo.timeout_s, echo.exclusive, echo.untrusted) == ("idempotent", 7, None, False)
    assert (fail.effects, fail.exclusive, fail.untrusted) == ("once", "raw", True)


async def test_results_say_what_they_cannot_show(host: Host) -> None:
    await host.start(raw=host.raw())
    text = await host.call("raw/many")
    assert text.splitlines() == [
        "one", "[image, image/png, 300 bytes, not shown]", "[link to file:///a.txt, a, not read]", "[file:///b.txt]",
        "inside", '{"n": 1}',
    ]  # fmt: skip
    with pytest.raises(ToolError, match=r"tool 'raw/fail' failed: no such city"):
        await host.call("raw/fail")
    with pytest.raises(ToolError, match="what is no result"):
        await host.call("raw/wrong")
    assert await host.call("raw/prints") == "loaded", "a line that some library prints is not a message"


async def test_a_hung_tool_costs_its_own_calls_only(host: Host) -> None:
    await host.start(raw=host.raw())
    hung = asyncio.create_task(host.call("raw/hang", timeout_s=1))
    assert await host.call("raw/echo") == "{}"
    with pytest.raises(ToolTimeout):
        await hung
    await until(lambda: host.received()[-1].get("method") != "tools/call")
    cancelled = [each for each in host.received() if each.get("method") == "notifications/cancelled"]
    (call,) = [each for each in host.received() if each.get("params", {}).get("name") == "hang"]
    assert [each["params"]["requestId"] for each in cancelled] == [call["id"]], "the server is told"
    assert await host.call("raw/echo") == "{}"
    assert len([each for each in host.received() if each.get("method") == "initialize"]) == 1


async def test_a_cancelled_call_tells_the_server(host: Host) -> None:
    await host.start(raw=host.raw())
    call = asyncio.create_task(host.call("raw/hang", timeout_s=60))
    await until(lambda: host.received()[-1].get("params", {}).get("name") == "hang")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: any(each.get("method") == "notifications/cancelled" for each in host.received()))


@pytest.mark.parametrize(
    ("tool", "reason"),
    [
        ("die", "ended with status 3; its last words: I cannot go on"),
        ("huge", "more than 16,777,216 bytes"),
        ("endless", "more than 16,777,216 bytes"),
        ("flood", "without end"),
        ("malformed", "no MCP message"),
    ],
)
async def test_what_ends_a_server_is_told_and_it_is_started_again(host: Host, tool: str, reason: str) -> None:
    source = await host.start(raw=host.raw())
    other = asyncio.create_task(host.call("raw/hang", timeout_s=60))
    await until(lambda: host.received()[-1].get("params", {}).get("name") == "hang")
    with pytest.raises(ToolError, match=reason) as raised:
        await host.call(f"raw/{tool}", timeout_s=60)
    assert type(raised.value) is ToolError, "it may have run: not `ToolNotStarted`"
    with pytest.raises(ToolError, match=reason):
        await other
    assert await host.call("raw/echo", timeout_s=60) == "{}"
    assert source.infos()[0].starts == 2
    assert source.infos()[0].state == "running"


async def test_a_server_that_dies_again_and_again_waits_longer_each_time(host: Host) -> None:
    source = await host.start(raw=host.raw())
    with pytest.raises(ToolError):
        await host.call("raw/die")
    with pytest.raises(ToolError, match="status 3"):
        await host.call("raw/die")
    with pytest.raises(ToolNotStarted, match="not running: it ended with status 3") as raised:
        await host.call("raw/echo")
    assert raised.value.retry_after_s is not None
    assert 0 < raised.value.retry_after_s <= 0.5
    await asyncio.sleep(raised.value.retry_after_s + 0.05)
    assert await host.call("raw/echo") == "{}"
    assert source.infos()[0].starts == 3


async def test_one_that_shall_stay_is_started_again_by_itself(host: Host) -> None:
    source = await host.start(raw=host.raw(start="kernel"))
    with pytest.raises(ToolError):
        await host.call("raw/die")
    await until(lambda: source.infos()[0].starts == 2 and source.infos()[0].state == "running")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["/nonexistent/server"], "cannot be run"),
        ([sys.executable, "-c", "raise SystemExit('no licence')"], "status 1; its last words: no licence"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "did not answer within 1 s"),
        ([sys.executable, "-c", "print('[]', flush=True); input()"], "no MCP message"),
        ([sys.executable, "-c", "import os, time; os.close(1); time.sleep(60)"], "still runs"),
    ],
)
async def test_one_that_never_starts(host: Host, command: list[str], reason: str) -> None:
    entry = McpEntry(command=command, pin="first", start_timeout_s=1)
    source = await host.start(bad=entry, raw=host.raw())
    assert reason in source.infos()[0].error
    assert await host.call("raw/echo") == "{}", "the others do not mind"
    with pytest.raises(ToolNotStarted, match="MCP server bad is not running"):
        await source.review("bad")


async def test_a_server_that_answers_nothing_any_more_is_replaced(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aios_kernel.tools.mcp.server._PROBE_S", 0.3)
    source = await host.start(raw=host.raw())
    with pytest.raises(ToolTimeout):
        await host.call("raw/freeze", timeout_s=0.5)
    await until(lambda: source.infos()[0].state == "failed")
    assert "does not answer any more" in source.infos()[0].error
    assert await host.call("raw/echo") == "{}"


async def test_nothing_of_the_kernel_is_in_its_environment(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_TOKEN", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("CITY_KEY", "for the server")
    await host.start(raw=host.raw(env=["CITY_KEY"]))
    seen = json.loads(await host.call("raw/env"))
    assert seen["CITY_KEY"] == "for the server"
    assert "secret" not in seen.values()
    assert seen.keys() <= {*server_environment(["CITY_KEY"]), "LC_CTYPE", "PWD", "SHLVL", "_"}
    fds = json.loads(await host.call("raw/echo"))
    assert fds == {}


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({"env": ["AIOS_TOKEN"]}, ConfigError),
        ({"env": ["NOT_SET_ANYWHERE"]}, ConfigError),
        ({"isolation": "container"}, Unsupported),
        ({"command": [], "url": "http://127.0.0.1:1/mcp", "isolation": "sandbox"}, ConfigError),
        ({"effects": "queryable"}, Unsupported),
        ({"headers": {"authorization": "PATH"}}, ConfigError),
        ({"command": [], "url": "http://127.0.0.1:1/mcp", "headers": {"authorization": "AIOS_TOKEN"}}, ConfigError),
        ({"command": [], "url": "http://127.0.0.1:1/mcp", "env": ["PATH"]}, ConfigError),
    ],
)
def test_entries_that_cannot_be_served(host: Host, entry: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"mcp\.raw"):
        McpTools({"raw": host.raw(**entry)}, Pins(host.folder / "mcp.db"), host.folder)
    with pytest.raises(ConfigError, match="slash"):
        McpTools({"a/b": host.raw()}, Pins(host.folder / "mcp.db"), host.folder)


async def test_closing_ends_the_process_and_what_it_started(host: Host, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    stubborn = tmp_path / "stubborn.py"
    stubborn.write_text(
        "import os, runpy, signal, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pid)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"sys.argv = ['raw', {str(tmp_path)!r}]\n"
        f"runpy.run_path({str(Path(__file__).with_name('raw_server.py'))!r}, run_name='__main__')\n"
    )
    await host.start(raw=McpEntry(command=[sys.executable, str(stubborn)], pin="first"))
    call = asyncio.create_task(host.call("raw/hang", timeout_s=60))
    await until(lambda: host.received()[-1].get("params", {}).get("name") == "hang")
    await host.close()
    with pytest.raises(ToolError):
        await call
    for number in map(int, pid.read_text().split()):
        ends_at = time.monotonic() + 5
        while alive(number):
            assert time.monotonic() < ends_at
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def test_a_tool_that_takes_a_key_is_given_the_kernels(host: Host) -> None:
    schema = {"type": "object", "properties": {"idempotency_key": {"type": "string"}}, "required": ["idempotency_key"]}
    host.write([defined("echo", inputSchema=schema), defined("fail")])
    policy = McpToolPolicy(effects="keyed")
    await host.start(raw=host.raw(tools={"echo": policy, "fail": policy}))
    assert host.registry is not None
    (spec,) = host.registry.specs()
    assert (spec.name, spec.parameters["properties"], spec.parameters["required"]) == ("raw/echo", {}, [])
