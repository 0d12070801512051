"""Long jobs of other agents: neither seen, nor waited for, nor ended, but by those whose business they are."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest

from aios_evals.siege.world import Agent, Answer, quick
from aios_kernel.errors import AccessDenied, NotFound
from aios_kernel.job_calls import JobService
from aios_kernel.kernel import Kernel
from aios_kernel.server.runtime import running_kernel
from aios_kernel.syscalls import (
    AccessGrant,
    AccessRevoke,
    AgentSpawn,
    Done,
    Failed,
    JobList,
    Syscall,
    ToolCancel,
    ToolJob,
    ToolJobs,
    ToolSubmit,
    ToolWait,
)

CODE = "import os, sys, time\nprint('canary', flush=True)\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)"
TOOLS = f"""
[commands.build]
argv = ["{sys.executable}", "-c", {msgspec.json.encode(CODE).decode()}, "{{gate}}"]
parameters = {{type = "object", properties = {{gate = {{type = "string"}}}}, required = ["gate"]}}
"""
STRANGERS = ["mole", "builder2", "builde", "Builder", "builder ", "x/builder", "job", "*", "bui*"]
POLICY = """
[roles.worker]
agents = ["lead", "builder", "mole"]

[[allow]]
rights = ["call", "spawn"]
resources = ["tool/*", "spawn/agent/helper"]

[[allow]]
roles = ["worker"]
rights = ["spawn"]
resources = ["spawn/agent/builder"]

[[deny]]
name = "nobody ends builds"
rights = ["write"]
resources = ["job/builder"]
"""
Open: TypeAlias = Callable[[], AbstractAsyncContextManager[Kernel]]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncGenerator[Open, None]:
    """Kernels on one data directory, one after the other; jobs that are left over come to an end."""
    (tmp_path / "tools.toml").write_text(TOOLS)

    @asynccontextmanager
    async def opening() -> AsyncGenerator[Kernel, None]:
        async with running_kernel(quick(tmp_path)) as kernel:
            yield kernel

    yield opening
    (tmp_path / "gate").touch()


async def agent(kernel: Kernel, name: str, principal: str = "ann", program: str = "") -> Agent:
    made = Agent(kernel, principal, name, program or f"{name} 1")
    await made.begin()
    return made


async def child(parent: Agent, name: str) -> Agent:
    """A run of another agent below this one, on a connection of its own."""
    made = Agent(parent.kernel, parent.principal, name, f"{name} below {parent.name}")
    await made.do(AgentSpawn(program=made.program, agent=name, parent=parent.program))
    return made


async def submitted(builder: Agent, home: Path, gate: str = "gate") -> str:
    """A job that runs until there is such a file, and has printed its secret."""
    arguments = msgspec.json.encode({"gate": str(home / gate)}).decode()
    job = (await builder.do(ToolSubmit(name="build", arguments=arguments, key="release"))).result
    assert isinstance(job, ToolJob)
    shown = (await builder.do(ToolWait(job.job, position=0))).result
    assert isinstance(shown, ToolJob)
    assert shown.lines == ["canary"]
    return job.job


async def listed(agent: Agent) -> list[str]:
    found = (await agent.do(ToolJobs(ended=True))).result
    assert isinstance(found, JobList)
    return [job.job for job in found.jobs]


async def what_gets_through(attacker: Agent, id: str) -> list[str]:
    """All that somebody may try on a job whose id he knows."""
    through = ["list"] if await listed(attacker) else []
    tries: list[Syscall] = [ToolWait(id, timeout_s=0), ToolWait(id, timeout_s=0, position=0), ToolWait(id, position=0)]
    for call in (*tries, ToolCancel(id)):
        answer = await asyncio.wait_for(attacker.ask(call), 20)
        if isinstance(answer, Done) or b"canary" in msgspec.msgpack.encode(answer):
            through.append(type(call).__name__)
    return through


async def state(agent: Agent, id: str) -> str:
    told = (await agent.do(ToolWait(id, timeout_s=0))).result
    assert isinstance(told, ToolJob)
    return told.state


def code(answer: Answer) -> str:
    assert isinstance(answer, Failed), answer
    return answer.code


async def test_other_agents_get_nowhere(opened: Open, tmp_path: Path) -> None:
    async with opened() as kernel:
        builder = await agent(kernel, "builder")
        id = await submitted(builder, tmp_path)
        for name in STRANGERS:
            assert await what_gets_through(await agent(kernel, name), id) == [], name
        below = await child(builder, "helper")
        assert await what_gets_through(below, id) == [], "a run below has no part in what is its parent's alone"
        foreign = await agent(kernel, "builder", principal="ben", program="builder of ben")
        assert await what_gets_through(foreign, id) == []
        assert code(await foreign.ask(ToolWait(id))) == NotFound.code, "of another principal it does not exist"
        assert await state(builder, id) == "running"


async def test_a_key_of_another_agent_gives_a_job_of_ones_own(opened: Open, tmp_path: Path) -> None:
    async with opened() as kernel:
        builder, mole = await agent(kernel, "builder"), await agent(kernel, "mole")
        first, second = await submitted(builder, tmp_path), await submitted(mole, tmp_path)
        assert (await listed(builder), await listed(mole)) == ([first], [second])


async def test_the_agent_the_runs_above_and_a_terminal_have_it_also_in_the_next_kernel(
    opened: Open, tmp_path: Path
) -> None:
    async with opened() as kernel:
        lead = await agent(kernel, "lead")
        builder = await child(lead, "builder")
        id = await submitted(builder, tmp_path)
        sibling = await child(lead, "tester")
        assert await what_gets_through(sibling, id) == []
        assert await listed(lead) == [id]
    async with opened() as kernel:  # which knows none of these runs
        terminal = Agent(kernel, "ann", "nobody", "")
        for one in (await agent(kernel, "lead"), await agent(kernel, "builder/inner"), terminal):
            assert await listed(one) == [id], one.name
            assert await state(one, id) == "running"
        assert await what_gets_through(await agent(kernel, "tester"), id) == []
        told = (await (await agent(kernel, "lead", program="lead 2")).do(ToolCancel(id))).result
        assert isinstance(told, ToolJob)
        assert told.state == "cancelled"


async def test_grants_are_a_way_in_as_far_as_they_go(opened: Open, tmp_path: Path) -> None:
    async with opened() as kernel:
        builder, mole = await agent(kernel, "builder"), await agent(kernel, "mole")
        id = await submitted(builder, tmp_path)
        stolen = AccessGrant(to="mole", resource="job/builder", rights=["read"])
        assert code(await mole.ask(stolen)) == AccessDenied.code
        await builder.do(stolen)
        assert await listed(mole) == [id]
        assert await state(mole, id) == "running"
        assert code(await mole.ask(ToolCancel(id))) == AccessDenied.code
        passed_on = AccessGrant(to="third", resource="job/builder", rights=["read"])
        assert code(await mole.ask(passed_on)) == AccessDenied.code
        waiting = asyncio.create_task(mole.ask(ToolWait(id)))
        while kernel.agents.table.alive(mole.program, "ann").state != "tool":  # noqa: ASYNC110 - of another task
            await asyncio.sleep(0.01)
        await builder.do(AccessRevoke(to="mole", resource="job/builder", rights=["read"]))
        (tmp_path / "gate").touch()
        answer = await asyncio.wait_for(waiting, 30)
        assert code(answer) == AccessDenied.code, "what was taken back while it waited is taken back"
        assert b"canary" not in msgspec.msgpack.encode(answer)
        await builder.do(AccessGrant(to="mole", resource="job/builder", rights=["write"]))
        assert await listed(mole) == []
        assert b"canary" not in msgspec.msgpack.encode(await mole.do(ToolCancel(id))), "who may end it may not read it"


async def test_the_policy_decides_about_owners_and_children(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "access.toml").write_text(POLICY)
    async with opened() as kernel:
        lead, mole = await agent(kernel, "lead"), await agent(kernel, "mole")
        builder = await child(lead, "builder")
        id = await submitted(builder, tmp_path)
        for one in (builder, lead):
            assert await state(one, id) == "running"
            assert code(await one.ask(ToolCancel(id))) == AccessDenied.code, "a denial wins over ownership"
        helper = await agent(kernel, "helper")
        disguised = AgentSpawn(program="disguised", agent="builder", parent=helper.program)
        assert code(await helper.ask(disguised)) == AccessDenied.code, "who may not run as an agent has not its jobs"
        assert await what_gets_through(mole, id) == []


async def test_without_the_check_it_would_be_found(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as kernel:
        id = await submitted(await agent(kernel, "builder"), tmp_path)
        monkeypatch.setattr(JobService, "_refusal", lambda *_: None)
        through = await what_gets_through(await agent(kernel, "mole"), id)
        assert through == ["list", "ToolWait", "ToolWait", "ToolWait", "ToolCancel"]
