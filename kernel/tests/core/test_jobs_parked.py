"""The KV of a program that waits for its long job gives way to others, and comes back exact: on the real engine."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from aios_kernel.client import Client
from aios_kernel.config import Config
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import (
    AgentSpawn,
    KernelPs,
    KernelTrace,
    LlmChat,
    LlmResult,
    Message,
    ProgramInfo,
    Programs,
    Sampling,
    ToolJob,
    ToolSubmit,
    ToolWait,
    Trace,
)

LINES = 40
CODE = f"""
import os, sys, time
for number in range({LINES}):
    print("line", number, flush=True)
    while not os.path.exists(sys.argv[1] + "/" + str(number)): time.sleep(0.001)
while not os.path.exists(sys.argv[1] + "/gate"): time.sleep(0.01)
print("built")
"""
TOOLS = f"""
[commands.build]
argv = ["{sys.executable}", "-c", {msgspec.json.encode(CODE).decode()}, "{{folder}}"]
parameters = {{type = "object", properties = {{folder = {{type = "string"}}}}, required = ["folder"]}}
expected_s = 600
"""
GREEDY = Sampling(temperature=0.0, max_tokens=12)
FIRST = Message("user", "think about rivers and " + "stones " * 30)
THEN = Message("user", "and now about the clouds")
OTHERS = "remember the harbour " * 16


class World:
    """A kernel with the demo model and a pool of a few contexts."""

    def __init__(self, home: Path, kv_tokens: int, **more: Any) -> None:
        torch.set_num_threads(1)
        home.mkdir()
        self.folder = home / "gates"
        self.folder.mkdir()
        (home / "tools.toml").write_text(TOOLS)
        config = Config(
            kernel="inprocess", home=str(home), model="demo", device="cpu", embedder="hash", vectors="exact",
            kv_tokens=kv_tokens, threads=1, **more,
        )  # fmt: skip
        self.running = InProcessKernel(config)
        self.connection = self.running.connect("tester")
        self.client = Client(self.connection)

    def spawn(self, program: str) -> None:
        self.client.call(AgentSpawn(program=program, agent=program))

    def chat(self, program: str, *messages: Message) -> LlmResult:
        found = self.client.call(LlmChat(messages=[*messages], sampling=GREEDY), program=program, timeout_s=60)
        assert isinstance(found, LlmResult)
        return found

    def wait(self, job: str, **more: Any) -> ToolJob:
        found = self.client.call(ToolWait(job, **more), program="builder", timeout_s=60)
        assert isinstance(found, ToolJob)
        return found

    def submit(self) -> str:
        arguments = json.dumps({"folder": str(self.folder)})
        job = self.client.call(ToolSubmit(name="build", arguments=arguments), program="builder")
        assert isinstance(job, ToolJob)
        return job.job

    def rows(self) -> dict[str, ProgramInfo]:
        found = self.client.call(KernelPs())
        assert isinstance(found, Programs)
        return {row.program: row for row in found.programs}

    def until(self, state: str) -> None:
        ends_at = time.monotonic() + 30
        while self.rows()["builder"].state != state:
            assert time.monotonic() < ends_at
            time.sleep(0.005)

    def moves(self) -> list[str]:
        found = self.client.call(KernelTrace(program="builder"))
        assert isinstance(found, Trace)
        return [span.syscall for span in found.spans if span.syscall.startswith("context.")]

    def end(self) -> None:
        self.connection.close()
        self.running.stop()


@contextmanager
def world(home: Path, kv_tokens: int, **more: Any) -> Generator[World]:
    made = World(home, kv_tokens, **more)
    try:
        yield made
    finally:
        (made.folder / "gate").touch()
        for number in range(LINES):
            (made.folder / str(number)).touch()
        made.end()


def silently(there: World, job: str) -> None:
    """Wait to the end; what it prints is nobody's business."""
    for number in range(LINES):
        (there.folder / str(number)).touch()
    there.wait(job)


def with_progress(there: World, job: str) -> None:
    """Wait for each line as it comes, then for the end."""
    position = seen = 0
    while True:
        shown = there.wait(job, position=position)
        position = shown.position
        if shown.ended_s is not None and not shown.lines:
            return
        for _ in shown.lines:
            (there.folder / str(seen)).touch()
            seen += 1


def looking_in(there: World, job: str) -> None:
    """Ask how it is, again and again, and wait a little in between, before it waits to the end."""
    for number in range(LINES):
        (there.folder / str(number)).touch()
        there.wait(job, timeout_s=0)
        there.wait(job, timeout_s=0.01)
    there.wait(job)


WAYS: list[Callable[[World, str], None]] = [silently, with_progress, looking_in]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("host", [True, False], ids=["to the host", "dropped"])
def test_the_context_of_a_program_that_waits_for_a_job_gives_way_and_comes_back_exact(
    tmp_path: Path, host: bool, way: Callable[[World, str], None]
) -> None:
    with world(tmp_path / "alone", 8192) as alone:
        alone.spawn("builder")
        said = alone.chat("builder", FIRST)
        wanted = alone.chat("builder", FIRST, Message("assistant", said.text), THEN)
    options = {} if host else {"swap_speed": 1.0}  # as on a machine where computing is as quick as copying
    with world(tmp_path / "crowded", 1024, policy_options=options) as there:
        there.spawn("builder")
        first = there.chat("builder", FIRST)
        assert first.text == said.text
        held = there.rows()["builder"].resident_tokens
        assert held > 0
        job = there.submit()
        waiting = threading.Thread(target=way, args=(there, job))
        waiting.start()
        if way is silently:
            there.until("tool")
        else:
            ends_at = time.monotonic() + 60
            while not (there.folder / str(LINES - 1)).exists():
                assert time.monotonic() < ends_at
                time.sleep(0.005)
            there.until("tool")
        others: list[str] = []
        while there.rows()["builder"].resident_tokens:
            others.append(f"other {len(others)}")
            there.spawn(others[-1])
            there.chat(others[-1], Message("user", OTHERS))
            assert all(there.rows()[other].resident_tokens for other in others), "who waits longest gives way first"
        assert len(others) > 1, "as long as nobody needs the room, it stays"
        row = there.rows()["builder"]
        assert (row.state, row.resident_tokens, row.swapped_tokens) == ("tool", 0, held if host else 0)
        (there.folder / "gate").touch()
        waiting.join(60)
        assert not waiting.is_alive()
        second = there.chat("builder", FIRST, Message("assistant", first.text), THEN)
        assert second.text == wanted.text
        if host:
            assert second.usage.cached_tokens == wanted.usage.cached_tokens, "nothing is computed twice"
            assert there.moves() == ["context.swap_out", "context.swap_in"]
