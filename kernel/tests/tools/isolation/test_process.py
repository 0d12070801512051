"""Processes of tools: streams within bounds, limits of time, and nothing that outlives its call."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aios_kernel.errors import ToolNotStarted
from aios_kernel.tools.confinement import Confinement
from aios_kernel.tools.hosted import Launch
from aios_kernel.tools.isolation.confine import alone
from aios_kernel.tools.isolation.level import Job, Runner

FEW = Confinement(processes=24, memory_mb=512, disk_mb=16, output_kb=64)


def job(shell: str, script: str, *, time_s: float = 60.0, stdin: bytes = b"", env: dict[str, str] | None = None) -> Job:
    return Job(argv=[shell, "-c", script], stdin=stdin, env=env or {}, confinement=FEW, time_s=time_s)


def alive(tag: str) -> list[int]:
    """Processes that have the tag in their environment: those of one call."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if tag.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def folders() -> set[str]:
    return {entry.name for entry in Path("/tmp").glob("aios-tool-*")}


async def started(tag: str) -> None:
    for _ in range(500):
        if alive(tag):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the process has not started")


async def test_streams_status_and_result_come_back(runner: Runner, shell: str) -> None:
    outcome = await runner.run(job(shell, "cat; echo two >&2; echo three >&3; exit 4", stdin=b"one\n"))
    assert (outcome.stdout, outcome.stderr, outcome.result) == (b"one\n", b"two\n", b"three\n")
    assert outcome.status == 4
    assert outcome.cpu_s > 0


async def test_the_environment_is_clean_and_the_folder_private(
    runner: Runner, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_TOKEN", "secret")
    before = folders()
    outcome = await runner.run(job(shell, "env; echo x > file && cat file; pwd; echo $TMPDIR", env={"GIVEN": "1"}))
    lines = outcome.stdout.decode().split("\n")
    assert lines[-2] == lines[-3], "it begins in its own folder"
    names = {line.partition("=")[0] for line in lines if "=" in line}
    assert names - {"_", "SHLVL", "OLDPWD"} == {"PATH", "LANG", "HOME", "TMPDIR", "PWD", "GIVEN"}
    await _settled(lambda: folders() <= before)


async def test_a_signal_is_told(runner: Runner, shell: str) -> None:
    outcome = await runner.run(job(shell, "kill -9 $$"))
    assert outcome.status in (-9, 137)  # 137: as bubblewrap and shells tell it


async def test_a_flood_is_read_and_dropped(runner: Runner, shell: str) -> None:
    outcome = await runner.run(job(shell, "head -c 50000000 /dev/zero; head -c 50000000 /dev/zero >&2; echo end >&2"))
    assert outcome.status == 0
    assert len(outcome.stdout) == 64 << 10
    assert outcome.left_out == 50_000_000 - (64 << 10)
    assert outcome.stderr.endswith(b"end\n")
    assert len(outcome.stderr) == 4096


async def test_its_time_is_limited(runner: Runner, shell: str) -> None:
    tag = f"T{secrets.token_hex(8)}"
    outcome = await runner.run(
        job(shell, "setsid sleep 77 & sleep 77 & trap '' TERM INT; sleep 77", time_s=0.7, env={tag: "1"})
    )
    assert outcome.timed_out
    assert outcome.status == -signal.SIGKILL
    assert alive(tag) == []


async def test_what_it_leaves_behind_is_killed(runner: Runner, shell: str) -> None:
    """Also a daemon that has forked twice, in a session of its own, with its streams closed."""
    tag = f"T{secrets.token_hex(8)}"
    daemon = "(setsid sh -c '(exec sleep 77) & exit' </dev/null >/dev/null 2>&1 3>&- &) ; sleep 0.2; echo done"
    outcome = await runner.run(job(shell, daemon, env={tag: "1"}))
    assert outcome.stdout == b"done\n"
    assert alive(tag) == []


async def test_cancelling_kills_it_before_the_call_returns(runner: Runner, shell: str) -> None:
    tag = f"T{secrets.token_hex(8)}"
    task = asyncio.create_task(runner.run(job(shell, "setsid sleep 77 & sleep 77", env={tag: "1"})))
    await started(tag)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert alive(tag) == []


async def test_a_fork_bomb_ends_with_its_call(confined: Runner, shell: str) -> None:
    tag = f"T{secrets.token_hex(8)}"
    bomb = "b() { sleep 0.01; b & b & wait; }; b"
    began = time.monotonic()
    outcome = await confined.run(job(shell, bomb, time_s=2.0, env={tag: "1"}))
    assert time.monotonic() - began < 30
    assert b"Cannot fork" in outcome.stderr
    assert alive(tag) == []


async def test_a_bomb_of_sessions_ends_too(confined: Runner, shell: str) -> None:
    """Each generation in a session of its own, whose parents are gone."""
    tag = f"T{secrets.token_hex(8)}"
    script = 'setsid sh -c "$BOMB" & setsid sh -c "$BOMB" & sleep 0.01'
    outcome = await confined.run(job(shell, script + "; sleep 1", time_s=3.0, env={tag: "1", "BOMB": script}))
    assert alive(tag) == [], outcome


async def test_many_run_side_by_side(confined: Runner, shell: str) -> None:
    calls = [confined.run(job(shell, f"sleep 0.1; echo {number}")) for number in range(20)]
    assert [int(outcome.stdout) for outcome in await asyncio.gather(*calls)] == list(range(20))


async def test_the_fork_server_is_started_again(runner: Runner, shell: str) -> None:
    await runner.run(job(shell, "true"))
    kill_fork_servers()
    for _ in range(100):
        try:
            assert (await runner.run(job(shell, "echo again"))).stdout == b"again\n"
            return
        except ToolNotStarted:  # what was sent while it died was lost, and said to be
            await asyncio.sleep(0.02)
    raise AssertionError("it was not started again")


def kill_fork_servers() -> None:
    """Those of this process."""
    killed = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                ours = f"PPid:\t{os.getpid()}\n" in (entry / "status").read_text()
                if ours and "launcher.server" in (entry / "cmdline").read_text():
                    os.kill(int(entry.name), signal.SIGKILL)
                    killed += 1
            except OSError:
                continue
    assert killed


async def test_a_program_that_is_not_there_is_not_started(runner: Runner) -> None:
    if runner.level.name in ("sandbox", "container"):
        outcome = await runner.run(Job(argv=["/usr/bin/no-such-program"]))
        assert outcome.status != 0
        assert b"no-such-program" in outcome.stderr
        return
    with pytest.raises(ToolNotStarted, match="No such file"):
        await runner.run(Job(argv=["/usr/bin/no-such-program"]))


async def test_the_folder_goes_even_if_the_tool_has_locked_it(confined: Runner, shell: str) -> None:
    before = folders()
    deep = "mkdir -p a/b; chmod 000 a; i=0; while [ $i -lt 300 ]; do mkdir d && cd d || exit; i=$((i+1)); done"
    outcome = await confined.run(job(shell, deep))
    assert outcome.status == 0, outcome.stderr
    await _settled(lambda: folders() <= before)


async def _settled(holds: object) -> None:
    for _ in range(250):
        if holds():  # type: ignore[operator]
            return
        await asyncio.sleep(0.02)
    raise AssertionError("a folder stays")


KERNEL = """
import asyncio, sys
from aios_kernel.tools.hosted import Launch
from aios_kernel.tools.isolation.confine import alone
from aios_kernel.tools.isolation.level import Job, Runner
from aios_kernel.tools.isolation.{module} import {level}
runner = Runner({level}())
asyncio.run(runner.run(Job(argv=["/bin/sh", "-c", "setsid sleep 77 & sleep 77"], env={{"{tag}": "1"}})))
"""


def kernel_process(runner: Runner, tag: str) -> subprocess.Popen[bytes]:
    level = type(runner.level)
    script = KERNEL.format(module=level.__module__.rpartition(".")[2], level=level.__name__, tag=tag)
    return subprocess.Popen([sys.executable, "-c", script])


async def test_a_killed_kernel_takes_its_tools_along(runner: Runner) -> None:
    tag = f"T{secrets.token_hex(8)}"
    before = folders()
    kernel = kernel_process(runner, tag)
    try:
        await started(tag)
    finally:
        kernel.kill()
        kernel.wait()
    await _settled(lambda: not alive(tag))
    await _settled(lambda: folders() <= before)


async def test_a_long_job_ends_with_its_group(confined: Runner, shell: str, tmp_path: Path) -> None:
    """Its supervisor knows the group only: nothing may leave it, or it dies with the namespace."""
    if not confined.level.outlives:
        pytest.skip("nothing of this level outlives the kernel")
    tag = f"T{secrets.token_hex(8)}"
    script = "(setsid sleep 77 || sleep 77) & sleep 77"
    made = alone(confined, "t", lambda _: Launch(argv=[shell, "-c", script], env={tag: "1"}), FEW)({})
    process = long_job(made, tmp_path)
    try:
        await started(tag)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    await _settled(lambda: not alive(tag))


def long_job(launch: Launch, folder: Path) -> subprocess.Popen[bytes]:
    """As the supervisor of long jobs starts it."""
    return subprocess.Popen(launch.argv, env=launch.env, cwd=folder, start_new_session=True)
