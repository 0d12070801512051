"""Plans that hold for several steps: fewer decisions, the same accounts, and whatever happens is decided at once."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest

from aios_kernel import errors
from aios_kernel.engine.fake import fake_model
from aios_kernel.engine.protocol import StepOutput
from aios_kernel.scheduler.program import ProgramPolicy
from aios_kernel.scheduler.protocol import Arrived, Computed, Event, Finished, Plan, ProgramEnded, View
from aios_kernel.syscalls import LlmResult

_SLOW_US = 500
"""Of a step: so that a test can do something in the middle."""


class Watched(ProgramPolicy):
    """The program policy, with what it was told and asked."""

    def __init__(self) -> None:
        super().__init__({})
        self.log: list[Event | Plan] = []
        self.views: list[View] = []

    def observe(self, event: Event, now_s: float) -> None:
        self.log.append(event)
        super().observe(event, now_s)

    def decide(self, view: View, now_s: float) -> Plan:
        plan = super().decide(view, now_s)
        self.log.append(plan)
        return plan

    @property
    def plans(self) -> list[Plan]:
        return [entry for entry in self.log if isinstance(entry, Plan)]

    def generated(self, task: int) -> int:
        """Of a task, up to its end; nothing may be told of it later."""
        told = [entry for entry in self.log if isinstance(entry, Computed | Finished) and entry.task == task]
        assert isinstance(told[-1], Finished)
        return sum(entry.generated for entry in told if isinstance(entry, Computed))


@pytest.fixture
def policy() -> Watched:
    return Watched()


@pytest.fixture
def life(make_life: Any, policy: Watched) -> Any:
    return make_life(fake_model(step_us=_SLOW_US), policy)


def test_a_steady_batch_needs_a_sixteenth_of_the_decisions(life: Any, policy: Watched) -> None:
    asked = [life.ask(f"p{n}", "think 400", tokens=320) for n in range(4)]
    life.wait(asked)
    assert len(policy.plans) < 320 / 16 + 16
    for generation in asked:
        assert isinstance(generation.ended, LlmResult)
        assert generation.ended.text.split() == [f"w{n}" for n in range(320)]
        assert policy.generated(generation.id) == generation.generated == 320
    assert life.dispatcher.tokens_computed == sum(generation.computed for generation in asked)
    life.close()


def test_each_end_is_decided_on_in_the_next_step(life: Any, policy: Watched) -> None:
    asked = [life.ask(f"p{n}", "think 400", tokens=20 + 7 * n) for n in range(6)]
    life.wait(asked)
    for n, generation in enumerate(asked):
        assert policy.generated(generation.id) == 20 + 7 * n
    for place, entry in enumerate(policy.log[:-1]):
        if isinstance(entry, Finished):
            later = [each for each in policy.log[place + 1 :] if not isinstance(each, Computed)]
            assert isinstance(later[0], Plan | Finished | Arrived)
    # Nobody is planned for that has left.
    gone: set[int] = set()
    for entry in policy.log:
        if isinstance(entry, Finished):
            gone.add(entry.task)
        elif isinstance(entry, Plan):
            assert not gone & {task for task, _ in entry.run}
    life.close()


def test_who_comes_or_leaves_in_the_middle_is_seen_at_once(life: Any, policy: Watched) -> None:
    long = life.ask("long", "think 4000", tokens=4000)
    _until(lambda: any(plan.repeat for plan in policy.plans))
    short = life.ask("short", "think 3", tokens=3)
    life.wait([short])
    assert long.ended is None
    arrived = next(
        place for place, entry in enumerate(policy.log) if isinstance(entry, Arrived) and entry.task == short.id
    )
    told = [entry for entry in policy.log[:arrived] if isinstance(entry, Computed) and entry.task == long.id]
    assert sum(entry.generated for entry in told) > 1  # it knew all that was computed until then
    assert isinstance(policy.log[arrived + 1], Plan)
    life.cancel(long)
    life.wait([long])
    assert isinstance(long.ended, errors.Cancelled)
    assert policy.generated(long.id) == long.generated
    life.close()


def test_what_was_emitted_in_a_stretch_counts_before_its_end(
    life: Any, policy: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps, there, on = life.model.engine.step, 0, threading.Event(), threading.Event()

    def step(plan: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 30:
            there.set()
            assert on.wait(30)
        return real(plan)

    monkeypatch.setattr(life.model.engine, "step", step)
    long = life.ask("long", "think 4000", tokens=60)
    assert there.wait(30)
    assert long.usage().completion_tokens == 29
    assert long.generated < 29  # the others are not handed to the answer one by one
    on.set()
    life.wait([long])
    assert isinstance(long.ended, LlmResult)
    assert long.ended.text.split() == [f"w{n}" for n in range(60)]
    assert policy.generated(long.id) == long.generated == 60
    life.close()


def test_an_outside_event_ends_a_stretch(life: Any, policy: Watched) -> None:
    long = life.ask("long", "think 4000", tokens=4000)
    _until(lambda: any(plan.repeat for plan in policy.plans))
    life.dispatcher.observe(ProgramEnded("somebody"))
    life.settle()
    place = policy.log.index(ProgramEnded("somebody"))
    assert isinstance(policy.log[place - 1], Computed | Plan)
    assert isinstance(policy.log[place + 1], Plan)
    life.cancel(long)
    life.wait([long])
    life.close()


def test_a_forward_that_raises_in_a_stretch_ends_its_batch_alone(
    life: Any, policy: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, broken = life.model.engine.step, threading.Event()

    def step(plan: Any) -> Any:
        if broken.is_set():
            broken.clear()
            raise RuntimeError("a kernel launch failed")
        return real(plan)

    monkeypatch.setattr(life.model.engine, "step", step)
    first = life.ask("first", "think 4000", tokens=4000)
    _until(lambda: any(plan.repeat for plan in policy.plans))
    broken.set()
    life.wait([first])
    assert isinstance(first.ended, errors.EngineError)
    assert life.turn("second", "think 3") == "w0 w1 w2"
    life.close()


def _until(holds: Any) -> None:
    waiting = threading.Event()
    for _ in range(2000):
        if holds():
            return
        waiting.wait(0.005)
    raise AssertionError("it did not come to that")


class Halting:
    """The fake engine; every fifth step gives nothing, as one whose answers come when they come."""

    def __init__(self, engine: Any, *, step_control: bool) -> None:
        self._engine = engine
        self.capabilities = dataclasses.replace(engine.capabilities, step_control=step_control)
        self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, plan: Any) -> Any:
        self.steps += 1
        if self.steps % 5:
            return self._engine.step(plan)
        return [StepOutput(context, 0) for context, _ in plan]


@pytest.mark.parametrize("step_control", [True, False])
def test_no_token_in_a_step_is_no_failure(make_life: Any, policy: Watched, *, step_control: bool) -> None:
    loaded = fake_model()
    engine: Any = Halting(loaded.engine, step_control=step_control)
    life = make_life(dataclasses.replace(loaded, engine=engine), policy)
    asked = [life.ask(f"p{n}", "think 60", tokens=60) for n in range(4)]
    life.wait(asked)
    for each in asked:
        assert isinstance(each.ended, LlmResult), each.ended
        assert each.ended.text == " ".join(f"w{k}" for k in range(60))
    life.close()
