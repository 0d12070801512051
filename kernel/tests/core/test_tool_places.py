"""Limits on tools in the agents' own processes: `tool.begin` waits for its place, paused as if the tool ran."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aios_kernel import errors
from aios_kernel.client import Client
from aios_kernel.config import Config
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import AgentExit, AgentSpawn, KernelPs, Programs, ToolBegin, ToolEnd, ToolGrant

TOOLS = """
[local.deploy]
exclusive = "cluster"
timeout_s = 20
parameters = {type = "object", required = ["version"]}

[local.reset]
exclusive = "cluster"
"""
DEPLOY = ToolBegin(name="deploy", arguments='{"version": 1}')
RESET = ToolBegin(name="reset")


@pytest.fixture
def client(tmp_path: Path) -> Generator[Client, None, None]:
    (tmp_path / "tools.toml").write_text(TOOLS)
    config = Config(kernel="inprocess", home=str(tmp_path), model="fake", embedder="hash", vectors="exact")
    running = InProcessKernel(config)
    connection = running.connect("tester")
    client = Client(connection)
    for program in "pq":
        client.call(AgentSpawn(program=program, agent=program))
    yield client
    connection.close()
    running.stop()


@pytest.fixture
def pool() -> Generator[ThreadPoolExecutor, None, None]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def begin(client: Client, call: ToolBegin, program: str = "p", timeout_s: float | None = None) -> ToolGrant:
    grant = client.call(call, program=program, timeout_s=timeout_s)
    assert isinstance(grant, ToolGrant)
    return grant


def end(client: Client, grant: ToolGrant, program: str = "p") -> None:
    client.call(ToolEnd(grant=grant.grant), program=program)


def state(client: Client, program: str) -> tuple[str, str]:
    listed = client.call(KernelPs())
    assert isinstance(listed, Programs)
    row = next(row for row in listed.programs if row.program == program)
    return row.state, row.waiting_for


def until(client: Client, program: str, wanted: tuple[str, str]) -> None:
    ends_at = time.monotonic() + 10
    while state(client, program) != wanted and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert state(client, program) == wanted


def test_two_tools_of_a_group_never_run_together(client: Client, pool: ThreadPoolExecutor) -> None:
    first = begin(client, DEPLOY)
    second = pool.submit(begin, client, RESET, "q")
    until(client, "q", ("tool", "reset"))
    assert not second.done()
    end(client, first)
    end(client, second.result(10), "q")
    until(client, "q", ("idle", ""))


def test_the_wait_counts_in_the_time_of_the_call(client: Client) -> None:
    first = begin(client, DEPLOY)
    with pytest.raises(errors.ToolNotStarted, match=r'one at a time of its group "cluster"'):
        begin(client, ToolBegin(name="reset", timeout_s=0.1), "q")
    with pytest.raises(errors.DeadlineExceeded):
        begin(client, RESET, "q", timeout_s=0.1)
    until(client, "q", ("idle", ""))
    end(client, first)
    granted = begin(client, RESET, "q")
    assert granted.timeout_s == 300.0


def test_a_program_that_ends_frees_its_place_and_leaves_the_queue(client: Client, pool: ThreadPoolExecutor) -> None:
    begin(client, DEPLOY)
    client.call(AgentSpawn(program="r", agent="r"))
    gone = pool.submit(begin, client, RESET, "r")
    until(client, "r", ("tool", "reset"))
    waits = pool.submit(begin, client, RESET, "q")
    until(client, "q", ("tool", "reset"))
    client.call(AgentExit(), program="r")
    with pytest.raises(errors.Cancelled):
        gone.result(10)
    client.call(AgentExit(), program="p")
    assert waits.result(10).grant


def test_a_schema_of_the_tools_file_is_checked(client: Client) -> None:
    with pytest.raises(errors.InvalidRequest, match="'version' is a required property"):
        begin(client, ToolBegin(name="deploy"))
    begin(client, DEPLOY)


def test_a_limit_that_a_call_brings_holds_for_all_calls_of_the_name(client: Client, pool: ThreadPoolExecutor) -> None:
    now, most, lock = 0, 0, threading.Lock()

    def one(program: str) -> None:
        nonlocal now, most
        grant = begin(client, ToolBegin(name="fetch", max_running=2), program)
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        end(client, grant, program)

    for done in [pool.submit(one, program) for program in "pq" * 8]:
        done.result(20)
    assert most == 2
