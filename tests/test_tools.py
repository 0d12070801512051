"""The kernel's tools from an agent and from a terminal; a job outlives a kernel that is killed with -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import aios_adapters as aios
from aios_adapters._kernel import close_links
from aios_kernel import errors
from aios_kernel.client import Client, connect
from aios_kernel.config import load
from aios_kernel.syscalls import KernelInfo, KernelPs, KernelStatus, ProgramInfo, Programs

TOOLS = '''
import os
import time

def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b

def build(folder: str) -> str:
    """Wait for a file, telling what it does."""
    print("begun", flush=True)
    with open(os.path.join(folder, "runs"), "a") as file:
        file.write("x")
    while not os.path.exists(os.path.join(folder, "gate")):
        time.sleep(0.02)
    print("nearly", flush=True)
    return "built"
'''
FILE = """
[python.add]
function = "made_up_tools:add"
effects = "idempotent"

[python.build]
function = "made_up_tools:build"
expected_s = 100
"""


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path, None, None]:
    """Kernels are started as they are needed, as processes of their own, on this data directory."""
    home = tmp_path / "aios"
    home.mkdir()
    (tmp_path / "made_up_tools.py").write_text(TOOLS)
    (home / "tools.toml").write_text(FILE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    settings = {"KERNEL": "auto", "HOME": str(home), "MODEL": "fake", "EMBEDDER": "hash", "VECTORS": "exact"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AIOS_{name}", value)
    yield tmp_path
    close_links()
    kill_kernel()


def kill_kernel() -> int | None:
    """Kill the running kernel with -9; gives its pid."""
    try:
        connection = connect(load(), client="killer", start=False)
    except errors.KernelUnavailable:
        return None
    status = Client(connection).call(KernelInfo())
    assert isinstance(status, KernelStatus)
    os.kill(status.pid, signal.SIGKILL)
    connection.close()
    return status.pid


def programs() -> list[ProgramInfo]:
    connection = connect(load(), client="watcher", start=False)
    try:
        listed = Client(connection).call(KernelPs())
    finally:
        connection.close()
    assert isinstance(listed, Programs)
    return listed.programs


def becomes(condition: Callable[[], object], seconds: float = 30.0) -> bool:
    ends_at = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < ends_at:
        time.sleep(0.02)
    return bool(held)


def waits_for_build() -> bool:
    try:
        return any(row.state == "tool" and row.waiting_for == "build" for row in programs())
    except errors.KernelUnavailable:
        return False


def test_a_job_survives_the_death_of_its_kernel(kernel: Path) -> None:
    """The agent waits through it, parked in both kernels, and the job runs once."""
    seen: list[str] = []

    @aios.agent(name="builder")
    def build() -> str:
        assert aios.tools.call("add", {"a": 1, "b": 2}) == "3"
        job = aios.tools.submit("build", {"folder": str(kernel)})
        return job.wait(progress=seen.append)

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(build)
        assert becomes(lambda: (kernel / "runs").exists())
        assert becomes(waits_for_build)
        first = kill_kernel()
        assert becomes(waits_for_build), "the agent waits in the next kernel"
        (kernel / "gate").touch()
        assert result.result(30) == "built"
    assert kill_kernel() not in (None, first)
    assert (kernel / "runs").read_text() == "x"
    assert seen == ["begun", "nearly"]


def test_a_job_that_was_submitted_and_killed_before_it_began_runs_once(kernel: Path) -> None:
    @aios.agent(name="builder")
    def submit() -> str:
        return aios.tools.submit("build", {"folder": str(kernel)}, key="release-7").id

    id = submit()
    kill_kernel()
    close_links()
    assert submit() == id, "the same key is the same job, also for the next kernel"
    (kernel / "gate").touch()

    @aios.agent(name="another")
    def look() -> None:
        assert aios.tools.jobs(ended=True) == []
        with pytest.raises(errors.AccessDenied, match='may not read a job of agent "builder"'):
            aios.tools.Job(id).wait(timeout_s=30)

    @aios.agent(name="builder")
    def wait() -> str:
        assert [job.job for job in aios.tools.jobs(ended=True)] == [id]
        return aios.tools.Job(id).wait(timeout_s=30)

    look()
    assert wait() == "built"
    assert (kernel / "runs").read_text() == "x"


def test_a_wait_has_its_time_and_a_job_can_be_cancelled(kernel: Path) -> None:
    @aios.agent(name="builder")
    def build() -> None:
        job = aios.tools.submit("build", {"folder": str(kernel)})
        with pytest.raises(errors.DeadlineExceeded, match="goes on"):
            job.wait(timeout_s=0.2)
        assert job.info().state in ("queued", "running")
        threading.Timer(0.2, aios.agent(job.cancel, name="builder")).start()
        with pytest.raises(errors.Cancelled):
            job.wait()
        with pytest.raises(errors.NotFound):
            aios.tools.Job("nothing").wait()

    build()


async def test_the_async_forms(kernel: Path) -> None:
    @aios.agent(name="builder")
    async def build() -> str:
        assert await aios.tools.acall("add", {"a": 1, "b": 2}) == "3"
        job = await aios.tools.asubmit("build", {"folder": str(kernel)})
        (kernel / "gate").touch()
        return await job.await_end()

    assert await build() == "built"


def test_what_is_called_must_be_json_and_by_an_agent(kernel: Path) -> None:
    with pytest.raises(errors.InvalidRequest, match="needs an agent"):
        aios.tools.call("add")

    @aios.agent(name="a")
    def work() -> None:
        with pytest.raises(errors.InvalidRequest, match="are no JSON"):
            aios.tools.call("add", {"a": object()})
        with pytest.raises(errors.InvalidRequest, match="is not of type 'integer'"):
            aios.tools.call("add", {"a": "x", "b": 1})
        assert "add" in [spec.name for spec in aios.tools.specs()]

    work()


def test_a_kernel_that_was_never_there_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_HOME", str(tmp_path))
    monkeypatch.setenv("AIOS_KERNEL", str(tmp_path / "nobody.sock"))
    began = time.monotonic()
    with aios.running("a"), pytest.raises(errors.KernelUnavailable):
        aios.tools.call("add")
    assert time.monotonic() - began < 5


def aios_command(*words: str, status: int = 0) -> str:
    ended = subprocess.run(
        [str(Path(sys.executable).parent / "aios"), *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == status, ended.stderr
    return ended.stdout if status == 0 else ended.stderr


def test_the_command_line(kernel: Path) -> None:
    with aios.running("keeper"):
        aios.tools.specs()  # a kernel is on
        assert "Add two numbers." in aios_command("tools", "list")
        assert aios_command("tools", "call", "add", '{"a": 1, "b": 2}') == "3\n"
        assert json.loads(aios_command("tools", "call", "add", '{"a": 1, "b": 2}', "--json"))["content"] == "3"
        assert "not of type" in aios_command("tools", "call", "add", '{"a": "x", "b": 2}', status=1)
        arguments = json.dumps({"folder": str(kernel)})
        id = aios_command("tools", "submit", "build", arguments).strip()
        assert id in aios_command("tools", "jobs")
        (kernel / "gate").touch()
        assert aios_command("tools", "wait", id, "--progress") == "built"
        assert id not in aios_command("tools", "jobs")
        (job,) = json.loads(aios_command("tools", "jobs", "--all", "--json"))
        assert (job["job"], job["state"]) == (id, "done")
        assert "done" in aios_command("tools", "cancel", id)
