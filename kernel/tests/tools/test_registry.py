"""Hosted tools: checked arguments, time limits, side by side, and no way for a tool to hurt the kernel."""

from __future__ import annotations

import asyncio
import http.server
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from aios_kernel.errors import (
    ConfigError,
    InvalidRequest,
    InvalidSchema,
    NotFound,
    ToolError,
    ToolNotStarted,
    ToolTimeout,
    Unsupported,
)  # fmt: skip
from aios_kernel.syscalls import ToolInvoke, ToolSpec
from aios_kernel.tools import HostedTool, Retry, Slots, ToolRegistry

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"type": "object", "properties": {"price": {"type": "number"}}}},
        "note": {"type": "string"},
    },
    "required": ["items"],
    "additionalProperties": False,
}


def tool(run: Any, name: str = "t", parameters: dict[str, Any] | None = None, **more: Any) -> HostedTool:
    return HostedTool(ToolSpec(name=name, parameters=parameters or {}), run, **more)


async def call(registry: ToolRegistry, arguments: str = "{}", name: str = "t", **more: Any) -> str:
    return (await registry.call(ToolInvoke(name=name, arguments=arguments, **more))).content


async def test_a_tool_runs_with_its_arguments_as_keywords() -> None:
    def total(items: list[dict[str, float]], note: str = "-") -> str:
        return f"{note}{sum(item['price'] for item in items)}"

    registry = ToolRegistry([tool(total, parameters=SCHEMA)])
    assert await call(registry, '{"items": [{"price": 2}, {"price": 3.5}]}') == "-5.5"
    assert await call(registry, '{"items": [], "note": "x"}') == "x0"


@pytest.mark.parametrize(
    ("value", "text"),
    [("plain", "plain"), ({"a": [1, None]}, '{"a":[1,null]}'), (None, "null"), (3, "3"), ("", ""), (True, "true")],
)
async def test_text_is_returned_as_it_is_and_the_rest_as_json(value: object, text: str) -> None:
    assert await call(ToolRegistry([tool(lambda: value)])) == text


async def test_a_value_that_is_no_json_or_too_much_is_a_tool_error() -> None:
    with pytest.raises(ToolError, match="returned a object, which is no JSON"):
        await call(ToolRegistry([tool(object)]))
    with pytest.raises(ToolError, match="returned 20,000,000 characters"):
        await call(ToolRegistry([tool(lambda: "x" * 20_000_000)]))


async def test_coroutine_tools_run_and_are_cancelled_at_their_limit() -> None:
    cancelled = threading.Event()

    async def slow(wait: float) -> str:
        try:
            await asyncio.sleep(wait)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "done"

    registry = ToolRegistry([tool(slow)])
    assert await call(registry, '{"wait": 0}') == "done"
    with pytest.raises(ToolTimeout):
        await call(registry, '{"wait": 60}', timeout_s=0.05)
    assert await asyncio.to_thread(cancelled.wait, 5)
    await registry.close()
    assert not registry._runner._threads


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("{}", r"arguments: 'items' is a required property"),
        ('{"items": [{"price": 1}, {"price": "two"}]}', r"arguments\.items\[1\]\.price: 'two' is not of type 'number'"),
        ('{"items": [], "other": 1}', r"arguments: Additional properties"),
        ('{"items": {}}', r"arguments\.items: "),
        ("", "not a JSON object"),
        ("[]", "not a JSON object"),
        ('"x"', "not a JSON object"),
        ("{'items': []}", "not a JSON object"),
        ('{"items": NaN}', "not a JSON object"),
        ('{"items": ' + "[" * 100_000, "not a JSON object"),
        ('{"note": "\ud800"}', "not a JSON object"),
        ('{"note": "' + "x" * 5_000_000 + '"}', "more than 4,194,304 characters"),
    ],
)
async def test_wrong_arguments_are_refused_before_the_run(arguments: str, says: str) -> None:
    ran: list[Any] = []
    registry = ToolRegistry([tool(lambda **given: ran.append(given), parameters=SCHEMA)])
    with pytest.raises(InvalidRequest, match=says):
        await call(registry, arguments)
    assert ran == []


async def test_an_exception_becomes_a_tool_error_with_its_message() -> None:
    def fails(how: str) -> str:
        raise {"value": ValueError("no such city"), "exit": SystemExit(3), "own": ToolError("quota used up")}[how]

    registry = ToolRegistry([tool(fails)])
    with pytest.raises(ToolError, match='tool "t" failed: ValueError: no such city'):
        await call(registry, '{"how": "value"}')
    with pytest.raises(ToolError, match="SystemExit: 3"):
        await call(registry, '{"how": "exit"}')
    with pytest.raises(ToolError, match=r"^quota used up"):
        await call(registry, '{"how": "own"}')
    with pytest.raises(ToolError, match="TypeError"):
        await call(registry, '{"unknown": 1}')


async def test_calls_of_one_turn_run_side_by_side() -> None:
    together = threading.Barrier(8, timeout=10)
    registry = ToolRegistry([tool(lambda: together.wait() >= 0)])
    assert await asyncio.gather(*(call(registry) for _ in range(8))) == ["true"] * 8


async def test_a_hanging_tool_times_out_and_holds_up_nobody() -> None:
    release = threading.Event()
    hang = tool(lambda: release.wait(30), "hang", timeout_s=0.1)
    registry = ToolRegistry([hang, tool(lambda: "ok")], slots=Slots(3))
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(ToolTimeout, match=r'tool "hang" did not end within 0.1 s'):
            await call(registry, name="hang")
        assert await call(registry) == "ok"
    with pytest.raises(ToolTimeout, match=r"within 0.05 s"):
        await call(registry, name="hang", timeout_s=0.05)
    assert time.monotonic() - began < 10
    with pytest.raises(ToolNotStarted, match=r"was not begun within 0\.05 s") as caught:
        await call(registry, timeout_s=0.05)
    assert caught.value.retry_after_s == 1.0
    release.set()
    await registry.close()
    assert await call(registry) == "ok"


async def test_a_cancelled_call_frees_its_place() -> None:
    started, release = threading.Event(), threading.Event()

    def run() -> str:
        started.set()
        release.wait(30)
        return "late"

    registry = ToolRegistry([tool(run)], slots=Slots(1))
    task = asyncio.ensure_future(call(registry))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    await registry.close()
    assert await call(registry) == "late"


class Gauge:
    """A tool that tells how many of its calls ran at once at most."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.01)
        with self._lock:
            self.now -= 1
        return "ok"


async def test_a_tool_runs_as_often_at_once_as_it_says() -> None:
    gauge = Gauge()
    registry = ToolRegistry([tool(gauge, max_running=3)])
    assert await asyncio.gather(*(call(registry) for _ in range(20))) == ["ok"] * 20
    assert gauge.most == 3


async def test_of_an_exclusive_group_one_call_runs_at_a_time() -> None:
    group, other = Gauge(), Gauge()
    tools = [tool(group, name, exclusive="machine") for name in "ab"] + [tool(other, "c")]
    registry = ToolRegistry(tools)
    await asyncio.gather(*(call(registry, name=name) for name in "abc" * 6))
    assert group.most == 1
    assert other.most > 1, "those outside of the group run beside it"


async def test_a_call_that_hangs_past_its_limit_still_excludes_others() -> None:
    release = threading.Event()
    hang = tool(lambda: release.wait(30), "hang", exclusive="machine")
    registry = ToolRegistry([hang, tool(lambda: "ok", exclusive="machine")])
    with pytest.raises(ToolTimeout):
        await call(registry, name="hang", timeout_s=0.05)
    with pytest.raises(ToolNotStarted, match=r'one at a time of its group "machine"'):
        await call(registry, timeout_s=0.05)
    waiting = asyncio.ensure_future(call(registry, timeout_s=10))
    release.set()
    assert await waiting == "ok"


async def test_a_coroutine_whose_caller_has_gone_is_cancelled() -> None:
    started, cancelled = threading.Event(), threading.Event()

    async def run() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    registry = ToolRegistry([tool(run)])
    task = asyncio.ensure_future(call(registry))
    assert await asyncio.to_thread(started.wait, 10)
    task.cancel()
    assert await asyncio.to_thread(cancelled.wait, 10)
    await registry.close()


class Flaky:
    """A tool that fails so many times."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.left, self.error, self.runs = failures, error, 0

    def __call__(self) -> str:
        self.runs += 1
        if self.left:
            self.left -= 1
            raise self.error
        return "ok"


async def test_an_idempotent_tool_is_tried_again() -> None:
    retry = Retry(attempts=3, wait_s=0.01)
    flaky = Flaky(2, ValueError("not yet"))
    assert await call(ToolRegistry([tool(flaky, retry=retry, effects="idempotent")])) == "ok"
    assert flaky.runs == 3
    flaky = Flaky(3, ValueError("not yet"))
    with pytest.raises(ToolError, match="not yet"):
        await call(ToolRegistry([tool(flaky, retry=retry, effects="idempotent")]))
    assert flaky.runs == 3
    slow = Flaky(9, ValueError("not yet"))
    patient = tool(slow, retry=Retry(attempts=9, wait_s=5.0), effects="idempotent")
    with pytest.raises(ToolError, match="not yet"):
        await call(ToolRegistry([patient]), timeout_s=1.0)
    assert slow.runs == 1, "a pause that would outlast the call is not made"


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
async def test_a_limit_that_is_none_is_refused(timeout_s: float) -> None:
    with pytest.raises(InvalidRequest, match="timeout_s"):
        await call(ToolRegistry([tool(lambda: "x")]), timeout_s=timeout_s)


async def test_unknown_tools_and_the_listing() -> None:
    registry = ToolRegistry([tool(lambda: "", "b"), tool(lambda: "", "a")])
    assert [spec.name for spec in registry.specs()] == ["a", "b"]
    with pytest.raises(NotFound, match="hosts no tool 'c'"):
        await call(registry, name="c")
    assert ToolRegistry().specs() == []


def test_what_cannot_be_hosted_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="offered twice, by a plugin and a plugin"):
        ToolRegistry([tool(lambda: "", "a"), tool(lambda: "", "a")])
    for name in ("", "a\0b", "x" * 300):
        with pytest.raises(ConfigError):
            ToolRegistry([tool(lambda: "", name)])
    with pytest.raises(InvalidSchema, match="no JSON schema"):
        ToolRegistry([tool(lambda: "", parameters={"type": "banana"})])
    for level in ("subprocess", "sandbox", "container"):
        with pytest.raises(Unsupported, match=f'needs isolation "{level}"'):
            ToolRegistry([tool(lambda: "", isolation=level)])


async def test_a_schema_reference_is_never_fetched() -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/schema.json"
        registry = ToolRegistry([tool(lambda x: "ran", parameters={"properties": {"x": {"$ref": url}}})])
        with pytest.raises(InvalidSchema, match="cannot be applied"):
            await call(registry, '{"x": 1}')
        server.shutdown()
        thread.join()
    assert asked == []


async def test_references_inside_the_schema_work() -> None:
    schema = {"properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}
    registry = ToolRegistry([tool(lambda x: x, parameters=schema)])
    assert await call(registry, '{"x": 1}') == "1"
    with pytest.raises(InvalidRequest, match=r"arguments\.x"):
        await call(registry, '{"x": "1"}')


def test_a_hanging_tool_does_not_keep_the_process_alive() -> None:
    code = """
import asyncio, time
from aios_kernel.errors import ToolTimeout
from aios_kernel.syscalls import ToolInvoke, ToolSpec
from aios_kernel.tools import HostedTool, ToolRegistry

async def main():
    registry = ToolRegistry([HostedTool(ToolSpec(name="t"), lambda: time.sleep(600))])
    try:
        await registry.call(ToolInvoke(name="t", timeout_s=0.1))
    except ToolTimeout:
        print("timed out", flush=True)

asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "timed out\n")
