"""Confined Python functions as long jobs: their results, their confinement, and the kernel that goes meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aios_kernel.errors import Unsupported
from aios_kernel.syscalls import ToolJob, ToolSpec, ToolSubmit, ToolWait
from aios_kernel.tools import Caller, HostedTool, JobManager, Slots, ToolRegistry, ToolStore
from aios_kernel.tools.confinement import UNSHARED, Confinement
from aios_kernel.tools.isolation.confine import Confiner, function_alone
from aios_kernel.tools.isolation.level import Runner
from aios_kernel.tools.isolation.reference import Reference

from .conftest import LEVELS, runner_of
from .test_probes import ATTACKS, SMALL, Target, command, target

__all__ = ["target"]
HERE = Path(__file__).parent.resolve()
ME = Caller("me", "bot", "p")
Open = Callable[..., JobManager]


@pytest.fixture(params=["subprocess", "sandbox"])
def confiner(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    runner_of(request.param).stop()
    monkeypatch.syspath_prepend(str(HERE))
    home = tmp_path / "home"
    home.mkdir()
    made = Confiner(LEVELS[request.param](), home)
    yield made
    made.stop()


@pytest.fixture
async def opened(confiner: Confiner, tmp_path: Path) -> AsyncGenerator[Open, None]:
    """Managers on one data directory, one after the other as kernels are."""
    managers: list[tuple[JobManager, ToolStore]] = []
    level = confiner._runner.level.name

    def open_one(**functions: tuple[Confinement, dict[str, Any]]) -> JobManager:
        tools = [
            HostedTool(ToolSpec(name=name), Reference(f"functions:{name}"), isolation=level, confinement=kept, **more)
            for name, (kept, more) in functions.items()
        ]
        slots, store = Slots(), ToolStore(tmp_path / "home" / "tools.db")
        registry = ToolRegistry(tools, slots=slots, levels={level: lambda: confiner})
        manager = JobManager(registry, store, slots, tmp_path / "home" / "jobs")
        managers.append((manager, store))
        manager.start()
        return manager

    yield open_one
    for manager, store in managers:
        await manager.close()
        await store.close()


async def run(jobs: JobManager, name: str, **arguments: Any) -> ToolJob:
    job = await jobs.submit(ToolSubmit(name=name, arguments=json.dumps(arguments)), ME)
    await end_of(jobs, job)
    return await end_of(jobs, job, position=0)


async def end_of(jobs: JobManager, job: ToolJob, **more: Any) -> ToolJob:
    return await asyncio.wait_for(jobs.wait("me", ToolWait(job.job, **more)), 60)


PLAIN: tuple[Confinement, dict[str, Any]] = (UNSHARED, {})


async def test_what_it_returns_is_the_result_and_what_it_prints_is_progress(opened: Open) -> None:
    jobs = opened(add=PLAIN, later=PLAIN, point=PLAIN)
    added = await run(jobs, "add", a=41)
    assert (added.state, added.content) == ("done", '{"sum":42}')
    assert set(added.lines) >= {"this is no result", "nor is this", "and this is neither"}
    assert (await run(jobs, "later", text="as it is")).content == "AS IT IS"
    assert (await run(jobs, "point")).content == '{"x":3}'


async def test_what_it_raises_is_a_failure_with_its_words(opened: Open) -> None:
    jobs = opened(fails=PLAIN, leaves=PLAIN, crashes=PLAIN, no_json=PLAIN)
    failed = await run(jobs, "fails", text="no such city")
    assert (failed.state, failed.code, failed.content) == ("failed", "tool", "")
    assert "ValueError: no such city" in failed.lines
    for name in ("leaves", "crashes", "no_json"):
        assert (await run(jobs, name)).state == "failed", name


async def test_it_gets_the_key_of_its_job(opened: Open) -> None:
    jobs = opened(keyed=(UNSHARED, {"effects": "keyed"}))
    job = await jobs.submit(ToolSubmit(name="keyed", key="release"), ME)
    first = (await end_of(jobs, job)).content
    assert re.fullmatch(r"[\w-]{16,}", first)


async def test_it_outlives_its_kernel(opened: Open, tmp_path: Path) -> None:
    place = tmp_path / "seen"
    place.mkdir()
    waiting = (Confinement(read=[str(place)]), {})
    jobs = opened(wait_for=waiting)
    job = await jobs.submit(ToolSubmit(name="wait_for", arguments=json.dumps({"path": str(place / "gate")})), ME)
    assert (await end_of(jobs, job, position=0)).lines == ["begun"]
    await jobs.close()
    after = opened(wait_for=waiting)
    (listed,) = await after.jobs("me", ended=False)
    assert (listed.id, listed.state, listed.attempt) == (job.job, "running", 1)
    (place / "gate").touch()
    ended = await end_of(after, job)
    assert (ended.state, json.loads(ended.content)) == ("done", {"found": str(place / "gate")})


async def test_cancelled_or_out_of_time_it_is_gone(opened: Open, tmp_path: Path) -> None:
    jobs = opened(hangs=PLAIN)
    job = await jobs.submit(ToolSubmit(name="hangs", timeout_s=0.5), ME)
    assert (await end_of(jobs, job)).code == "tool_timeout"
    job = await jobs.submit(ToolSubmit(name="hangs"), ME)
    assert (await jobs.cancel("me", job.job)).state == "cancelled"


def test_one_with_a_network_cannot_be_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its proxy is the kernel's, which it is to outlive."""
    runner_of("sandbox").stop()
    monkeypatch.syspath_prepend(str(HERE))
    confiner = Confiner(LEVELS["sandbox"](), tmp_path / "home")
    tool = HostedTool(
        ToolSpec(name="add"), Reference("functions:add"), isolation="sandbox",
        confinement=Confinement(network=["example.org:443"]),
    )  # fmt: skip
    jobs = JobManager(
        ToolRegistry([tool], levels={"sandbox": lambda: confiner}), ToolStore(tmp_path / "t.db"), Slots(), tmp_path
    )
    with pytest.raises(Unsupported, match="cannot be a long job"):
        asyncio.run(jobs.submit(ToolSubmit(name="add", arguments='{"a": 1}'), ME))
    confiner.stop()


@pytest.mark.timeout(300)
def test_the_attacks_of_a_function_get_as_far_as_the_document_says(
    confined: Runner, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in a job of its own; that they succeed without isolation is tested where the probes are."""
    if not confined.level.outlives:
        pytest.skip("nothing of this level outlives the kernel")
    monkeypatch.syspath_prepend(str(HERE))
    confinement = msgspec.structs.replace(SMALL, read=[])
    launch = function_alone(confined, "functions:attack", confinement)
    wrong: list[str] = []
    for number, attack in enumerate(ATTACKS):
        if attack.needs_root and os.geteuid() != 0:
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        made = launch({"probe": attack.probe, "arguments": json.loads(command(attack, target)[-1])})
        inherited = os.open(target.secret, os.O_RDONLY)
        try:
            done = subprocess.run(
                made.argv, env=made.env, cwd=folder, input=made.stdin.encode(), pass_fds=[inherited],
                capture_output=True, timeout=60, check=False, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(inherited)
        found = done.stdout.decode() + done.stderr.decode()
        wanted = "GOT" if confined.level.name in attack.through else "BLOCKED: .+"
        if not re.fullmatch(wanted, found):
            wrong.append(f"{attack.words}: {found}")
        target.check()
    assert wrong == []
