"""Calls that come together begin in one step, and one that is ended before it has begun leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from aios_kernel.config import Config
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.server.runtime import principal_name
from aios_kernel.syscalls import Done, Failed, LlmChat, LlmResult, Message, Request, Sampling

N = 8


class Frames:
    """What came for several requests."""

    def __init__(self, n: int) -> None:
        self.frames: list[Any] = []
        self.ended = threading.Event()
        self._n = n

    def take(self, frame: Any) -> None:
        self.frames.append(frame)
        if len(self.frames) == self._n:
            self.ended.set()


class World:
    """A kernel in this process whose engine writes down how many contexts each step has."""

    def __init__(self, home: Path) -> None:
        config = Config(kernel="inprocess", home=str(home), model="fake", embedder="hash", vectors="exact")
        self.running = InProcessKernel(config)
        assert self.running.kernel is not None
        self.kernel = self.running.kernel
        self.steps: list[int] = []
        self._numbers = iter(range(1, 1000))
        self.session = self.kernel.connect(principal_name(), "tester")
        engine: Any = self.kernel.model.engine
        step = engine.step

        def watched(plan: Any) -> Any:
            self.steps.append(len(plan))
            return step(plan)

        engine.step = watched

    def on_the_loop(self, work: Callable[[], object]) -> None:
        """Run something in one turn of the loop, while the engine rests."""
        pause = threading.Event()
        while not self.kernel.dispatcher.rests:
            pause.wait(0.001)
        self.kernel.loop.call_soon_threadsafe(work)

    def request(self, text: str, take: Callable[[Any], None]) -> int:
        number = next(self._numbers)
        call = LlmChat(messages=[Message(role="user", content=text)], sampling=Sampling(max_tokens=4))
        self.session.request(Request(id=number, call=call), take)
        return number


@pytest.fixture
def world(tmp_path: Path) -> Generator[World]:
    made = World(tmp_path)
    yield made
    made.running.stop()


def test_calls_of_one_turn_of_the_loop_share_their_first_step(world: World) -> None:
    seen = Frames(N)

    def ask() -> None:
        for n in range(N):
            world.request(f"say {n}", seen.take)

    world.on_the_loop(ask)
    assert seen.ended.wait(30)
    assert sorted(frame.result.text for frame in seen.frames) == [str(n) for n in range(N)]
    assert world.steps[0] == N


def test_calls_that_arrive_one_after_the_other_share_it_too(world: World) -> None:
    seen = Frames(N)

    def ask(n: int) -> None:
        if n + 1 < N:
            world.kernel.loop.call_soon(ask, n + 1)
        world.request(f"say {n}", seen.take)

    world.on_the_loop(lambda: ask(0))
    assert seen.ended.wait(30)
    assert world.steps[0] > 1  # all of them, where they do not take longer than the first one may wait


def test_a_call_that_is_cancelled_before_it_has_begun(world: World) -> None:
    seen = Frames(2)

    def ask() -> None:
        gone = world.request("think 100", seen.take)
        world.request("say stays", seen.take)
        world.session.cancel(gone)

    world.on_the_loop(ask)
    assert seen.ended.wait(30)
    failed, done = seen.frames
    assert isinstance(failed, Failed)
    assert failed.code == "cancelled"
    assert isinstance(done, Done)
    assert isinstance(done.result, LlmResult)
    assert done.result.text == "stays"
    world.kernel.dispatcher.embed([[1]]).result(30)
    assert not world.kernel.dispatcher.view.tasks
    assert len(seen.frames) == 2


def test_a_kernel_that_ends_ends_calls_that_have_not_begun(tmp_path: Path) -> None:
    world, seen = World(tmp_path), Frames(N)

    def ask() -> None:
        for _ in range(N):
            world.request("ponder", seen.take)
        world.kernel.shutdown.set()

    world.on_the_loop(ask)
    world.running.stop()
    assert seen.ended.wait(30)
    assert all(isinstance(frame, Failed) and frame.code == "cancelled" for frame in seen.frames)
