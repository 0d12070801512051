"""`aios bench tools`: what a tool call costs beside the tool itself.

A kernel process (fake engine) hosts tools that do nothing, and is called over its socket, one call at a time. Commands
run `true`, at every isolation level that the kernel offers here, beside a plain subprocess of the same program.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aios_kernel.client import Client, connect, wait_until_free
from aios_kernel.config import Config
from aios_kernel.errors import AiosError
from aios_kernel.plugins import Plugins
from aios_kernel.syscalls import (
    KernelShutdown,
    ToolBegin,
    ToolEnd,
    ToolGrant,
    ToolInvoke,
    ToolJob,
    ToolSubmit,
    ToolWait,
)

_TURN = 8
_SLEEP_S = 0.05
_END_S = 10.0
_MODULE = "aios_evals.tools_bench"


def nothing() -> str:
    """The tool that costs nothing."""
    return ""


def sleep() -> str:
    """The tool of a turn of several."""
    time.sleep(_SLEEP_S)
    return ""


def run(calls: int = 200) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows `{case, calls, p50_us, p99_us, mean_us}`, and what could not be measured here."""
    with tempfile.TemporaryDirectory(prefix="aios-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        config = Config(home=folder, model="fake", embedder="hash", vectors="exact", grace_s=1.0)
        levels, notes = _levels(config)
        (home / "tools.toml").write_text(_tools(levels))
        connection = connect(config, client="bench")
        try:
            client = Client(connection)
            rows = [*_calls(client, calls), _turn(client, max(3, calls // 20)), _subprocess(max(10, calls // 4))]
            rows += [_command(client, level, rows[-1], max(10, calls // 4)) for level in levels]
            rows.append(_row("job: submit to result", max(5, calls // 10), lambda: _job(client)))
            client.call(KernelShutdown())
        finally:
            connection.close()
        wait_until_free(config, _END_S)
    return rows, notes


def _calls(client: Client, calls: int) -> list[dict[str, Any]]:
    return [
        _row("in the agent's process (begin, end)", calls, lambda: _begin_and_end(client)),
        _row("hosted, idempotent", calls, lambda: client.call(ToolInvoke("free"))),
        _row("hosted, effect recorded", calls, lambda: client.call(ToolInvoke("once"))),
        _row("hosted, second call with its key", calls, lambda: client.call(ToolInvoke("once", key="bench"))),
    ]


def _begin_and_end(client: Client) -> None:
    grant = client.call(ToolBegin("bench"))
    assert isinstance(grant, ToolGrant)
    client.call(ToolEnd(grant.grant))


def _turn(client: Client, turns: int) -> dict[str, Any]:
    """Eight calls of one turn, of 50 ms each: what they take together beyond that."""
    with ThreadPoolExecutor(_TURN) as pool:

        def turn() -> None:
            list(pool.map(client.call, [ToolInvoke("sleep")] * _TURN))

        row = _row(f"turn of {_TURN} calls of {_SLEEP_S * 1e3:.0f} ms", turns, turn)
    return row | {"over_one_us": round(row["p50_us"] - _SLEEP_S * 1e6, 1)}


def _subprocess(calls: int) -> dict[str, Any]:
    return _row("plain subprocess of `true`", calls, lambda: subprocess.run(["true"], check=True, capture_output=True))


def _command(client: Client, level: str, plain: dict[str, Any], calls: int) -> dict[str, Any]:
    row = _row(f"command, {level}", calls, lambda: client.call(ToolInvoke(f"true_{level}")))
    return row | {"over_subprocess_us": round(row["p50_us"] - plain["p50_us"], 1)}


def _job(client: Client) -> None:
    job = client.call(ToolSubmit("free"))
    assert isinstance(job, ToolJob)
    ended = client.call(ToolWait(job.job))
    assert isinstance(ended, ToolJob)
    assert ended.state == "done", ended.error


def _row(case: str, calls: int, call: Callable[[], object]) -> dict[str, Any]:
    """One call after the other, after one to warm up."""
    call()
    took: list[float] = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    took.sort()
    return {
        "case": case,
        "calls": calls,
        "p50_us": round(took[len(took) // 2] * 1e6, 1),
        "p99_us": round(took[min(len(took) - 1, int(0.99 * len(took)))] * 1e6, 1),
        "mean_us": round(sum(took) / len(took) * 1e6, 1),
    }


def _levels(config: Config) -> tuple[list[str], list[str]]:
    """The isolation levels at which this kernel runs commands on this machine, and why not at others."""
    plugins = Plugins()
    if "commands" not in plugins.named("aios_kernel_tool_sources"):
        return [], ["commands are not measured: no plugin of this kernel runs them"]
    levels, notes = ["trusted"], list[str]()
    for level, factory in plugins.named("aios_kernel_isolation").items():
        try:
            factory(config)
        except AiosError as error:
            notes.append(f"{level} is not measured: {error.message}")
        else:
            levels.append(level)
    return levels, notes


def _tools(levels: list[str]) -> str:
    """The tools file."""
    python = f"""
[python.free]
function = "{_MODULE}:nothing"
effects = "idempotent"

[python.once]
function = "{_MODULE}:nothing"

[python.sleep]
function = "{_MODULE}:sleep"
effects = "idempotent"
"""
    command = """
[commands.true_{level}]
argv = ["true"]
effects = "idempotent"
isolation = "{level}"
"""
    return python + "".join(command.format(level=level) for level in levels)
