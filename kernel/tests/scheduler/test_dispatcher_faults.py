"""Faults of policies, engines and codecs: the calls concerned end with an error, the others and the thread go on."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from aios_kernel import errors
from aios_kernel.chat.generation import Generation
from aios_kernel.chat.service import ChatService
from aios_kernel.config import Config
from aios_kernel.engine.fake import fake_model
from aios_kernel.engine.protocol import KvExhausted
from aios_kernel.process import Program
from aios_kernel.scheduler.dispatcher import Dispatcher, Update
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.scheduler.protocol import Arrived, Event, Plan, Policy, ToolBegan, View
from aios_kernel.scheduler.round_robin import RoundRobin
from aios_kernel.syscalls import LlmChat, LlmResult, Message


class Bench:
    """A dispatcher, what it delivered, and a way to wait for the ends."""

    def __init__(self, policy: Policy, **sizes: int) -> None:
        self.model = fake_model(**sizes)
        self.updates: list[Update] = []
        self._changed = threading.Condition()
        self.dispatcher = Dispatcher(self.model, policy, self._deliver)
        self._service = ChatService(self.model, Config())

    def prepare(self, text: str) -> Generation:
        call = LlmChat(messages=[Message(role="user", content=text)])
        program = Program(id="p", agent="a", principal="me", group="g")
        return self._service.prepare(self.dispatcher.next_id(), call, program)

    def ask(self, *texts: str) -> list[Generation]:
        asked = [self.prepare(text) for text in texts]
        for generation in asked:
            self.dispatcher.submit(generation)
        return asked

    def wait(self, asked: list[Generation]) -> list[object]:
        def all_ended() -> bool:
            ends = [update.generation.id for update in self.updates if update.ended]
            assert len(ends) == len(set(ends)), "a call ended twice"
            return all(generation.id in ends for generation in asked)

        with self._changed:
            assert self._changed.wait_for(all_ended, 10)
        return [generation.ended for generation in asked]

    def stop(self) -> None:
        self.dispatcher.stop()
        assert self.model.engine.kv_free() == self.model.engine.capabilities.kv_tokens

    def _deliver(self, updates: list[Update]) -> None:
        with self._changed:
            self.updates.extend(updates)
            self._changed.notify_all()


class Faulty(Fifo):
    """A policy that raises for some events."""

    def __init__(self, kinds: tuple[type, ...]) -> None:
        super().__init__({})
        self.kinds = kinds

    def observe(self, event: Event, now_s: float) -> None:
        if isinstance(event, self.kinds):
            raise ValueError("a fault of the policy")


def test_a_policy_that_fails_on_events_does_not_end_the_thread() -> None:
    bench = Bench(Faulty((ToolBegan,)))
    bench.dispatcher.start()
    bench.dispatcher.observe(ToolBegan("p", "search"))
    assert isinstance(bench.wait(bench.ask("think 3"))[0], LlmResult)
    bench.stop()


def test_a_call_that_the_policy_cannot_take_fails_at_once() -> None:
    bench = Bench(Faulty((Arrived,)))
    bench.dispatcher.start()
    assert isinstance(bench.wait(bench.ask("think 3"))[0], errors.InternalError)
    bench.dispatcher.set_policy(Fifo({}))
    assert isinstance(bench.wait(bench.ask("think 3"))[0], LlmResult)
    bench.stop()


def test_a_context_that_cannot_be_swapped_out_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(RoundRobin({"quantum": 2, "slots": 1, "always_swap": True}))
    real, failing = bench.model.engine.snapshot, iter([True])

    def snapshot(context: Any) -> Any:
        if next(failing, False):
            raise RuntimeError("the host's memory is full")
        return real(context)

    monkeypatch.setattr(bench.model.engine, "snapshot", snapshot)
    asked = bench.ask("think 9", "think 9", "think 9")
    bench.dispatcher.start()
    ends = bench.wait(asked)
    assert [type(end) for end in ends].count(LlmResult) == 2
    assert [type(end) for end in ends].count(errors.EngineError) == 1
    bench.stop()


def test_an_answer_that_cannot_be_read_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Fifo({}))
    asked = bench.ask("think 5", "think 6", "think 5")

    def push_all(tokens: list[int]) -> None:
        raise UnicodeError("no text")

    monkeypatch.setattr(asked[1].stream, "push_all", push_all)
    bench.dispatcher.start()
    assert [type(end) for end in bench.wait(asked)] == [LlmResult, errors.InternalError, LlmResult]
    bench.stop()


def test_a_call_that_comes_after_the_end_ends_too() -> None:
    bench = Bench(Fifo({}))
    bench.dispatcher.start()
    bench.stop()
    assert isinstance(bench.wait(bench.ask("think 3"))[0], errors.Cancelled)


class Greedy(Fifo):
    """Plans everything twice and without limits, as a careless plugin might."""

    def decide(self, view: View, now_s: float) -> Plan:
        ids = [task.id for task in view.tasks]
        return Plan(admit=ids, run=[(task, 1 << 20) for task in ids + ids] + [(99, 1), (ids[0], -5)])


def test_a_plan_without_limits_is_cut() -> None:
    bench = Bench(Greedy({}), max_batch=2, kv_tokens=256)
    sizes: list[int] = []
    real = bench.model.engine.step

    def step(plan: list[tuple[Any, int]]) -> Any:
        sizes.append(len(plan))
        assert len({id(context) for context, _ in plan}) == len(plan)
        return real(plan)

    bench.model.engine.step = step  # type: ignore[method-assign]
    asked = bench.ask(*(f"think {n}" for n in range(5)))
    bench.dispatcher.start()
    assert all(isinstance(end, LlmResult) for end in bench.wait(asked))
    assert max(sizes) == 2
    bench.stop()


def test_a_pool_that_is_fuller_than_planned_never_livelocks(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Fifo({}))

    def step(plan: list[tuple[Any, int]]) -> Any:
        raise KvExhausted

    monkeypatch.setattr(bench.model.engine, "step", step)
    asked = bench.ask("think 3", "think 3", "think 3")
    bench.dispatcher.start()
    assert {type(end) for end in bench.wait(asked)} == {errors.OutOfMemory}
    bench.stop()


def test_tokens_cached_while_a_prompt_is_prefilled_are_counted() -> None:
    bench = Bench(Fifo({}))
    real = bench.model.engine.step

    def step(plan: list[tuple[Any, int]]) -> Any:
        for context, _ in plan:
            context.cached = 2  # as when another context computed the same prefix since this one was opened
        return real(plan)

    bench.model.engine.step = step  # type: ignore[method-assign]
    asked = bench.ask("think 3", "think 3")
    bench.dispatcher.start()
    ends = bench.wait(asked)
    assert [end.usage.cached_tokens for end in ends if isinstance(end, LlmResult)] == [2, 2]
    assert bench.dispatcher.tokens_cached == 4
    bench.stop()


class Lazy(Fifo):
    """A policy that never runs anything."""

    def decide(self, view: View, now_s: float) -> Plan:
        return Plan()


def test_a_policy_that_runs_nothing_fails_calls_instead_of_keeping_them() -> None:
    bench = Bench(Lazy({}))
    asked = bench.ask("think 3", "think 3")
    bench.dispatcher.start()
    assert {type(end) for end in bench.wait(asked)} == {errors.InternalError}
    bench.stop()
