"""What the scheduler hears of programs, and what `kernel.ps` tells of them; the policy changes while calls run."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from aios_kernel import errors
from aios_kernel.client import Client
from aios_kernel.config import Config
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.scheduler.protocol import Event, Plan, ToolBegan, ToolEnded, View
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import (
    AgentExit,
    AgentReceive,
    AgentSend,
    AgentSpawn,
    KernelInfo,
    KernelPolicy,
    KernelPs,
    KernelStatus,
    LlmChat,
    LlmResult,
    Message,
    ProgramInfo,
    Programs,
    ToolBegin,
    ToolEnd,
    ToolGrant,
)


class Listening(Fifo):
    """Fifo that parks and writes down what it hears and sees."""

    name = "listening"
    parks = True

    def __init__(self) -> None:
        super().__init__({})
        self.heard: list[Event] = []
        self.seen: list[View] = []
        self.changed = threading.Condition()

    def observe(self, event: Event, now_s: float) -> None:
        with self.changed:
            self.heard.append(event)
            self.changed.notify_all()

    def decide(self, view: View, now_s: float) -> Plan:
        self.seen.append(dataclasses.replace(view, tasks=[*view.tasks]))
        return super().decide(view, now_s)

    def wait_for(self, event: type[Event]) -> Event:
        with self.changed:
            assert self.changed.wait_for(lambda: any(isinstance(heard, event) for heard in self.heard), 10)
            return next(heard for heard in self.heard if isinstance(heard, event))


class World:
    """A kernel in this process, a client, and the policy that listens."""

    def __init__(self, home: Path) -> None:
        config = Config(kernel="inprocess", home=str(home), model="fake", embedder="hash", vectors="exact")
        self.running = InProcessKernel(config)
        self.connection = self.running.connect("tester")
        self.client = Client(self.connection)
        self.policy = Listening()
        assert self.running.kernel is not None
        self.dispatcher = self.running.kernel.dispatcher
        self.dispatcher.set_policy(self.policy)

    def spawn(self, program: str, **settings: Any) -> None:
        self.client.call(AgentSpawn(program=program, agent=program, **settings))

    def chat(self, program: str, text: str, **how: Any) -> LlmResult:
        result = self.client.call(LlmChat(messages=[Message("user", text)]), program=program, **how)
        assert isinstance(result, LlmResult)
        return result

    def row(self, program: str) -> ProgramInfo:
        listed = self.client.call(KernelPs())
        assert isinstance(listed, Programs)
        return next(row for row in listed.programs if row.program == program)


@pytest.fixture
def world(tmp_path: Path) -> Generator[World, None, None]:
    made = World(tmp_path)
    yield made
    made.connection.close()
    made.running.stop()


def test_tools_in_the_agents_process_are_pauses_with_their_expected_time(world: World) -> None:
    world.spawn("p")
    grant = world.client.call(ToolBegin(name="search", expected_s=1.5), program="p")
    assert isinstance(grant, ToolGrant)
    assert world.policy.wait_for(ToolBegan) == ToolBegan("p", "search", 1.5)
    assert (world.row("p").state, world.row("p").waiting_for) == ("tool", "search")
    world.client.call(ToolEnd(grant=grant.grant), program="p")
    ended = world.policy.wait_for(ToolEnded)
    assert isinstance(ended, ToolEnded)
    assert (ended.program, ended.tool) == ("p", "search")


def test_waiting_for_a_message_is_a_pause(world: World) -> None:
    world.spawn("p")
    world.spawn("q")
    reader = threading.Thread(target=lambda: world.client.call(AgentReceive(), program="p"))
    reader.start()
    assert world.policy.wait_for(ToolBegan) == ToolBegan("p", "message")
    world.client.call(AgentSend(to="p", body="hello"), program="q")
    reader.join(10)
    ended = world.policy.wait_for(ToolEnded)
    assert isinstance(ended, ToolEnded)
    assert (ended.program, ended.tool) == ("p", "message")


def test_tasks_name_their_family_and_their_deadline(world: World) -> None:
    world.spawn("top")
    world.spawn("middle", parent="top")
    world.spawn("leaf", parent="middle")
    world.chat("leaf", "say yes", timeout_s=60.0)
    world.chat("top", "say yes")
    tasks = {task.program: task for view in world.policy.seen for task in view.tasks}
    assert (tasks["leaf"].root, tasks["leaf"].family, tasks["top"].family) == ("top", "top", "top")
    assert tasks["leaf"].deadline_s is not None
    assert 0 < tasks["leaf"].deadline_s - tasks["leaf"].arrived_s <= 60.5


def test_ps_tells_attained_service_and_where_the_kv_is(world: World) -> None:
    world.spawn("p")
    result = world.chat("p", "think 40")
    world.dispatcher.embed([[1]]).result(10)
    row = world.row("p")
    computed = result.usage.prompt_tokens + result.usage.completion_tokens - 1
    assert (row.service_tokens, row.resident_tokens, row.swapped_tokens) == (computed, computed, 0)
    parking = world.dispatcher.contexts.parking
    stowed: list[bool] = []
    decide = world.policy.decide

    def stow(view: View, now_s: float) -> Plan:
        plan = decide(view, now_s)
        plan.stow = ["p"]
        stowed.append(True)
        return plan

    world.policy.decide = stow  # type: ignore[method-assign]
    while not stowed or [row.residency.value for row in parking.rows] != ["swapped"]:
        world.dispatcher.embed([[1]]).result(10)
    world.dispatcher.embed([[1]]).result(10)
    row = world.row("p")
    assert (row.resident_tokens, row.swapped_tokens) == (0, computed)
    world.client.call(AgentExit(), program="p")
    world.dispatcher.embed([[1]]).result(10)
    row = world.row("p")
    assert (row.state, row.service_tokens, row.swapped_tokens) == ("finished", computed, 0)
    assert world.dispatcher.model.engine.kv_free() == world.dispatcher.model.engine.capabilities.kv_tokens


def test_the_policy_changes_while_calls_run(world: World) -> None:
    world.spawn("p")
    running = threading.Thread(target=lambda: world.chat("p", "think 3000"))
    running.start()
    for name in ("fifo", "round_robin", "fifo"):
        world.client.call(KernelPolicy(name=name))
        world.dispatcher.embed([[1]]).result(10)
        status = world.client.call(KernelInfo())
        assert isinstance(status, KernelStatus)
        assert status.policy == name
    running.join(30)
    assert not running.is_alive()
    for name, quantum in (("fifi", 1), ("round_robin", 0)):
        with pytest.raises(errors.ConfigError):
            world.client.call(KernelPolicy(name=name, options={"quantum": quantum}))
