"""Long jobs: real processes that print, fail, hang, vanish and outlive their kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from aios_kernel.errors import InvalidRequest, NotFound, Unsupported
from aios_kernel.syscalls import ToolJob, ToolSpec, ToolSubmit, ToolWait
from aios_kernel.tools import (
    Caller,
    EffectStatus,
    HostedTool,
    JobManager,
    Launch,
    Slots,
    ToolRegistry,
    ToolStore,
)
from aios_kernel.tools import store as tool_store
from aios_kernel.tools.job_process import JobProcess

ME = Caller("me", "bot", "p1")
Open = Callable[..., JobManager]


def python(code: str) -> Callable[[Mapping[str, Any]], Launch]:
    """Runs Python code with the call's argument `x`, and its key, as `sys.argv`."""

    def launch(arguments: Mapping[str, Any]) -> Launch:
        argv = [sys.executable, "-c", code, str(arguments.get("x", "")), str(arguments.get("idempotency_key", ""))]
        return Launch(argv=argv, env={"PATH": os.environ["PATH"]}, stdin="from the kernel")

    return launch


def tool(name: str, code: str, **more: Any) -> HostedTool:
    return HostedTool(ToolSpec(name=name), lambda: "", launch=python(code), **more)


SLEEP = "import time; print('sleeps', flush=True); time.sleep(60)"
COUNT = "import sys; open('{file}', 'a').write('x'); print('done', sys.argv[1])"


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncGenerator[Open, None]:
    """Managers on one data directory, one after the other as kernels are; what still runs at the end is cancelled."""
    managers: list[tuple[JobManager, ToolStore]] = []

    def open_one(*tools: HostedTool, slots: Slots | None = None) -> JobManager:
        slots, store = slots or Slots(), ToolStore(tmp_path / "tools.db")
        manager = JobManager(ToolRegistry(tools, slots=slots), store, slots, tmp_path / "jobs")
        managers.append((manager, store))
        manager.start()
        return manager

    yield open_one
    last = managers[-1][0]
    for job in await last.jobs("me", ended=False):
        await last.cancel("me", job.id)
    for manager, store in managers:
        await manager.close()
        await store.close()


async def submit(jobs: JobManager, name: str, **more: Any) -> ToolJob:
    return await jobs.submit(ToolSubmit(name=name, **more), ME)


async def end_of(jobs: JobManager, job: ToolJob, **more: Any) -> ToolJob:
    return await asyncio.wait_for(jobs.wait("me", ToolWait(job.job, **more)), 30)


async def running(jobs: JobManager, job: ToolJob) -> ToolJob:
    """When it has printed its first line."""
    shown = await end_of(jobs, job, position=0)
    assert shown.lines, shown
    return shown


async def test_a_job_gives_what_it_printed(opened: Open) -> None:
    code = "import sys; print('arg', sys.argv[1]); print(sys.stdin.read(), end=''); print('to stderr', file=sys.stderr)"
    jobs = opened(tool("t", code, untrusted=True))
    job = await submit(jobs, "t", arguments='{"x": "a b; $(c)"}')
    assert (job.tool, job.agent, job.program) == ("t", "bot", "p1")
    assert job.state in ("queued", "running")
    await end_of(jobs, job)
    ended = await end_of(jobs, job, position=0)
    assert (ended.state, ended.content) == ("done", "arg a b; $(c)\nfrom the kernel")
    assert ended.untrusted
    assert "to stderr" in " ".join(ended.lines)
    assert ended.started_s is not None
    assert job.submitted_s <= ended.started_s <= ended.ended_s


async def test_progress_comes_as_it_is_printed(opened: Open, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = f"""
import os, time
for n in range(3):
    print("step", n, flush=True)
    while not os.path.exists("{gate}" + str(n)): time.sleep(0.01)
"""
    jobs = opened(tool("t", code))
    job, seen, position = await submit(jobs, "t"), list[str](), 0
    for n in range(3):
        shown = await end_of(jobs, job, position=position)
        seen, position = seen + shown.lines, shown.position
        assert (shown.state, shown.lines) == ("running", [f"step {n}"])
        touch(f"{gate}{n}")
    ended = await end_of(jobs, job, position=position)
    assert (ended.state, ended.lines, seen) == ("done", [], ["step 0", "step 1", "step 2"])


@pytest.mark.parametrize(
    ("code", "more", "error", "says"),
    [
        ("import sys; sys.exit(3)", {}, "tool", "ended with status 3"),
        ("import os; os.kill(os.getpid(), 9)", {}, "tool", "ended with status -9"),
        (SLEEP, {"timeout_s": 0.5}, "tool_timeout", "did not end within 0.5 s"),
    ],
)
async def test_what_fails_says_how(opened: Open, code: str, more: dict[str, Any], error: str, says: str) -> None:
    jobs = opened(tool("t", code))
    ended = await end_of(jobs, await submit(jobs, "t", **more))
    assert (ended.state, ended.code, ended.content) == ("failed", error, "")
    assert says in ended.error


async def test_a_program_that_is_not_there_fails(opened: Open) -> None:
    jobs = opened(HostedTool(ToolSpec(name="t"), lambda: "", launch=lambda _: Launch(argv=["/no/such/program"])))
    ended = await end_of(jobs, await submit(jobs, "t"))
    assert (ended.state, ended.code) == ("failed", "tool_not_started")
    assert "No such file" in ended.error


async def test_a_cancelled_job_ends_with_all_its_processes(opened: Open, tmp_path: Path) -> None:
    code = f"""
import subprocess
child = subprocess.Popen(["sleep", "600"])
open("{tmp_path}/child", "w").write(str(child.pid))
print("up", flush=True)
child.wait()
"""
    jobs = opened(tool("t", code))
    job = await submit(jobs, "t")
    await running(jobs, job)
    ended = await jobs.cancel("me", job.job)
    assert (ended.state, ended.code) == ("cancelled", "cancelled")
    child = int((tmp_path / "child").read_text())
    assert await asyncio.to_thread(becomes, lambda: not _lives(child))
    assert await jobs.cancel("me", job.job) == ended, "once more changes nothing"


def touch(path: str) -> None:
    Path(path).touch()


def kill_supervisor(home: Path) -> None:
    (pid,) = home.glob("jobs/*/*/pid")
    os.kill(int(pid.read_text()), signal.SIGKILL)


def becomes(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    ends_at = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < ends_at:
        time.sleep(0.01)
    return bool(held)


def _lives(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def test_places_are_waited_for_and_a_queued_job_can_be_cancelled(opened: Open) -> None:
    jobs = opened(tool("t", SLEEP, max_running=1), tool("u", "print('u')", max_running=1))
    first = await submit(jobs, "t")
    await running(jobs, first)
    second = await submit(jobs, "t")
    assert (await end_of(jobs, await submit(jobs, "u"))).state == "done"
    assert (await end_of(jobs, second, timeout_s=0.1)).state == "queued"
    assert (await jobs.cancel("me", second.job)).state == "cancelled"
    third = await submit(jobs, "t")
    await jobs.cancel("me", first.job)
    await running(jobs, third)


async def test_a_key_makes_two_requests_one_job(opened: Open, tmp_path: Path) -> None:
    jobs = opened(tool("t", COUNT.format(file=tmp_path / "count")))
    first, second = await submit(jobs, "t", key="k"), await submit(jobs, "t", key="k")
    assert first.job == second.job
    await end_of(jobs, first)
    assert (await submit(jobs, "t", key="k")).state == "done"
    assert (tmp_path / "count").read_text() == "x"
    with pytest.raises(InvalidRequest, match="is that of another job"):
        await submit(jobs, "t", key="k", arguments='{"x": 1}')


async def test_what_cannot_be_a_job_is_refused(opened: Open) -> None:
    jobs = opened(HostedTool(ToolSpec(name="inside"), lambda: ""), tool("t", "pass"))
    with pytest.raises(Unsupported, match="cannot be a long job"):
        await submit(jobs, "inside")
    with pytest.raises(NotFound):
        await submit(jobs, "unknown")
    with pytest.raises(InvalidRequest, match="timeout_s"):
        await submit(jobs, "t", timeout_s=-1.0)
    with pytest.raises(NotFound, match="there is no job"):
        await jobs.wait("me", ToolWait("nothing"))
    job = await submit(jobs, "t")
    with pytest.raises(NotFound):
        await jobs.wait("somebody else", ToolWait(job.job))
    assert await jobs.jobs("somebody else", ended=True) == []
    await end_of(jobs, job)
    assert [one.id for one in await jobs.jobs("me", ended=True)] == [job.job]
    assert await jobs.jobs("me", ended=False) == []


async def test_the_next_manager_goes_on_with_running_and_queued_jobs(opened: Open, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = (
        f"import os, time\nprint('up', flush=True)\nwhile not os.path.exists('{gate}'): time.sleep(0.01)\nprint('end')"
    )
    waiting = tool("t", code, max_running=1)
    jobs = opened(waiting)
    first = await submit(jobs, "t")
    await running(jobs, first)
    second = await submit(jobs, "t")
    await jobs.close()
    after = opened(waiting)
    listed = {job.id: job.state for job in await after.jobs("me", ended=False)}
    assert listed == {first.job: "running", second.job: "queued"}
    touch(str(gate))
    for job in (first, second):
        ended = await end_of(after, job)
        assert (ended.state, ended.content) == ("done", "up\nend\n")


async def test_a_job_that_ended_while_there_was_no_kernel_is_found(opened: Open, tmp_path: Path) -> None:
    jobs = opened(tool("t", f"import time; print('up', flush=True); time.sleep(0.3); open('{tmp_path}/over', 'w')"))
    job = await submit(jobs, "t")
    await running(jobs, job)
    await jobs.close()
    assert await asyncio.to_thread(becomes, lambda: list(tmp_path.glob("jobs/*/*/exit.json")))
    ended = await end_of(opened(tool("t", "")), job)
    assert (ended.state, ended.content) == ("done", "up\n")


async def _vanished(opened: Open, tmp_path: Path, **policy: Any) -> ToolJob:
    """A job whose supervisor was killed while there was no kernel, as it is after the machine went down."""
    code = f"""
import time
open("{tmp_path}/count", "a").write("x")
print("up", flush=True)
time.sleep(60 if open("{tmp_path}/count").read() == "x" else 0)
"""
    jobs = opened(tool("t", code, **policy))
    job = await submit(jobs, "t")
    await running(jobs, job)
    await jobs.close()
    await asyncio.to_thread(kill_supervisor, tmp_path)
    return await end_of(opened(tool("t", code, **policy)), job)


async def test_a_vanished_job_is_not_run_again_unless_its_tool_allows_it(opened: Open, tmp_path: Path) -> None:
    ended = await _vanished(opened, tmp_path)
    assert (ended.state, ended.code) == ("failed", "effect_unknown")
    assert (tmp_path / "count").read_text() == "x"


async def test_a_vanished_job_of_an_idempotent_tool_is_run_again(opened: Open, tmp_path: Path) -> None:
    ended = await _vanished(opened, tmp_path, effects="idempotent")
    assert (ended.state, ended.content) == ("done", "up\n")
    assert (tmp_path / "count").read_text() == "xx"


@pytest.mark.parametrize("state", ["done", "not_done", "unknown"])
async def test_a_vanished_job_of_a_queryable_tool_is_asked_about(opened: Open, tmp_path: Path, state: Any) -> None:
    asked: list[str] = []

    def status(key: str) -> EffectStatus:
        asked.append(key)
        return EffectStatus(state, "as told")

    ended = await _vanished(opened, tmp_path, effects="queryable", status=status)
    assert len(asked) == 1
    wanted = {"done": ("done", "as told"), "not_done": ("done", "up\n"), "unknown": ("failed", "")}
    assert (ended.state, ended.content) == wanted[state]


async def test_jobs_of_the_first_release_are_their_agents(opened: Open, tmp_path: Path) -> None:
    """Its database does not say which agents ran above."""
    old = tool_store._SCHEMA.replace("    above TEXT NOT NULL DEFAULT '[]',\n", "")
    assert old != tool_store._SCHEMA
    with contextlib.closing(sqlite3.connect(tmp_path / "tools.db")) as db:
        db.executescript(f"{old}; PRAGMA user_version = 1")
        columns = "id, principal, agent, program, key, tool, digest, arguments, timeout_s, submitted_s, state, attempt"
        ended = ("j1", "me", "bot/inner", "p1", "k", "t", b"", "", 9.0, 1.0, "done", 1, 0, 1.0, time.time(), "", "")
        row = f"INSERT INTO jobs ({columns}, cancelled, started_s, ended_s, code, error) VALUES ({'?, ' * 16}?)"
        db.execute(row, ended)
        db.commit()
    jobs = opened(tool("t", "print('new')"))
    (known,) = await jobs.jobs("me", ended=True)
    assert (known.id, known.owners) == ("j1", ["bot"])
    mine = await jobs.submit(ToolSubmit(name="t"), ME._replace(above=("lead",)))
    assert (await jobs.find("me", mine.job)).owners == ["bot", "lead"]
    await end_of(jobs, mine)
    assert (await jobs.find("me", mine.job)).owners == ["bot", "lead"]


async def test_a_job_whose_process_never_began_is_begun_by_the_next_kernel(opened: Open, tmp_path: Path) -> None:
    """The kernel died between its word that it starts the job and the job's first instruction."""
    counting = tool("t", COUNT.format(file=tmp_path / "count"))
    jobs = opened(counting)
    start = JobProcess.start
    JobProcess.start = lambda *_: time.sleep(2)  # type: ignore[method-assign]
    try:
        job = await submit(jobs, "t")
        await end_of(jobs, job, timeout_s=0.2)
    finally:
        JobProcess.start = start  # type: ignore[method-assign]
    await jobs.close()
    after = opened(counting)
    ended = await end_of(after, job)
    assert (ended.state, ended.content) == ("done", "done \n")
    assert (tmp_path / "count").read_text() == "x"
    assert (tmp_path / "jobs" / job.job / "1" / "begun").exists(), "a process that is late finds itself given up"
