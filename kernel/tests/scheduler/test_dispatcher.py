"""The dispatcher with real policies on the fake engine: every call ends once, whatever the pool and the batch allow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_kernel import errors
from aios_kernel.chat.generation import Generation
from aios_kernel.chat.service import ChatService
from aios_kernel.config import Config
from aios_kernel.engine.fake import fake_model
from aios_kernel.engine.protocol import StepOutput
from aios_kernel.process import Program
from aios_kernel.scheduler.dispatcher import Dispatcher, Update
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.scheduler.protocol import Plan, Policy, View
from aios_kernel.scheduler.round_robin import RoundRobin
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling

POLICIES: dict[str, Callable[[], Policy]] = {
    "fifo": lambda: Fifo({}),
    "round_robin": lambda: RoundRobin({"quantum": 3}),
    "round_robin_slots": lambda: RoundRobin({"quantum": 2, "slots": 2, "always_swap": True}),
}


class Bench:
    """A dispatcher and what came out of it."""

    def __init__(self, policy: Policy, *, kv_tokens: int = 1 << 20, max_batch: int = 64) -> None:
        self.model = fake_model(kv_tokens=kv_tokens, max_batch=max_batch)
        self.ends: dict[int, list[Generation]] = {}
        self.preempted = 0
        self._all_ended = threading.Condition()
        self.dispatcher = Dispatcher(self.model, policy, self._deliver)
        self._service = ChatService(self.model, Config())
        self.dispatcher.start()

    def ask(self, text: str, **sampling: int) -> Generation:
        program = Program(id=f"p{self.dispatcher.next_id()}", agent="a", principal="me", group="g")
        call = LlmChat(messages=[Message(role="user", content=text)], sampling=Sampling(**sampling))
        generation = self._service.prepare(self.dispatcher.next_id(), call, program)
        self.dispatcher.submit(generation)
        return generation

    def wait(self, generations: list[Generation], seconds: float = 10.0) -> None:
        with self._all_ended:
            assert self._all_ended.wait_for(lambda: all(g.id in self.ends for g in generations), seconds)

    def _deliver(self, updates: list[Update]) -> None:
        with self._all_ended:
            for update in updates:
                self.preempted += update.preempted
                if update.ended:
                    self.ends.setdefault(update.generation.id, []).append(update.generation)
            self._all_ended.notify_all()


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=20),
    kv_blocks=st.integers(4, 12),
    max_batch=st.integers(1, 8),
)
def test_every_call_ends_once_with_its_own_answer(
    policy: str, lengths: list[int], kv_blocks: int, max_batch: int
) -> None:
    bench = Bench(POLICIES[policy](), kv_tokens=16 * kv_blocks, max_batch=max_batch)
    asked = [bench.ask(f"think {length}") for length in lengths]
    bench.wait(asked)
    bench.dispatcher.stop()
    for generation, length in zip(asked, lengths, strict=True):
        assert len(bench.ends[generation.id]) == 1
        result = generation.ended
        assert isinstance(result, LlmResult), result
        assert result.text == " ".join(f"w{n}" for n in range(length))
    assert bench.model.engine.kv_free() == 16 * kv_blocks


def test_round_robin_swaps_and_continues_exactly() -> None:
    bench = Bench(POLICIES["round_robin_slots"]())
    asked = [bench.ask("think 30") for _ in range(5)]
    bench.wait(asked)
    assert bench.dispatcher.contexts.snapshots > 10
    assert bench.preempted == bench.dispatcher.contexts.snapshots
    assert {generation.ended.text for generation in asked if isinstance(generation.ended, LlmResult)} == {
        " ".join(f"w{n}" for n in range(30))
    }
    bench.dispatcher.stop()


def test_round_robin_lets_a_short_call_pass_a_long_one() -> None:
    bench = Bench(RoundRobin({"quantum": 4, "slots": 1}))
    long = bench.ask("ponder")
    short = bench.ask("think 5")
    bench.wait([short])
    assert long.ended is None
    bench.dispatcher.cancel(long, errors.Cancelled("enough"))
    bench.wait([long])
    bench.dispatcher.stop()


def test_a_call_that_can_never_fit_fails_alone() -> None:
    bench = Bench(Fifo({}), kv_tokens=64)
    fits = bench.ask("think 10")
    with pytest.raises(errors.OutOfMemory):
        bench.ask("word " * 200)
    bench.wait([fits])
    assert isinstance(fits.ended, LlmResult)
    bench.dispatcher.stop()


def test_stop_cancels_what_is_open() -> None:
    bench = Bench(Fifo({}))
    running = bench.ask("ponder")
    bench.dispatcher.stop()
    assert isinstance(running.ended, errors.Cancelled)


def test_a_forward_that_raises_ends_its_batch_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Fifo({}))
    real = bench.model.engine.step
    failing = iter([True])

    def step(plan: list[tuple[object, int]]) -> list[StepOutput]:
        if next(failing, False):
            raise RuntimeError("a kernel launch failed")
        return real(plan)

    monkeypatch.setattr(bench.model.engine, "step", step)
    first = bench.ask("think 3")
    bench.wait([first])
    second = bench.ask("think 3")
    bench.wait([second])
    assert isinstance(first.ended, errors.EngineError)
    assert isinstance(second.ended, LlmResult)
    bench.dispatcher.stop()
    assert bench.model.engine.kv_free() == bench.model.engine.capabilities.kv_tokens


def test_the_policy_can_change_while_calls_run() -> None:
    bench = Bench(Fifo({}), max_batch=2)
    asked = [bench.ask("think 400") for _ in range(6)]
    for factory in POLICIES.values():
        bench.dispatcher.set_policy(factory())
        time.sleep(0.005)
    bench.wait(asked)
    assert all(isinstance(generation.ended, LlmResult) for generation in asked)
    bench.dispatcher.stop()


def test_max_tokens_and_stop_strings_end_an_answer() -> None:
    bench = Bench(Fifo({}))
    limited = bench.ask("think 50", max_tokens=7)
    bench.wait([limited])
    assert isinstance(limited.ended, LlmResult)
    assert limited.ended.finish_reason == "length"
    assert limited.ended.usage.completion_tokens == 7
    bench.dispatcher.stop()


class Counting(Fifo):
    """Notes how many calls each decision sees."""

    def __init__(self) -> None:
        super().__init__({})
        self.seen: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def decide(self, view: View, now_s: float) -> Plan:
        self.gate.wait()
        self.seen.append(len(view.tasks))
        return super().decide(view, now_s)


def test_a_burst_of_calls_does_not_hold_up_the_steps() -> None:
    policy = Counting()
    bench = Bench(policy, max_batch=4)
    running = bench.ask("ponder", max_tokens=10_000)
    while running.started_s is None:
        time.sleep(0.001)
    program = Program(id="p", agent="a", principal="me", group="g")
    call = LlmChat(messages=[Message(role="user", content="say x")])
    burst = [bench._service.prepare(bench.dispatcher.next_id(), call, program) for _ in range(3000)]
    policy.gate.clear()  # all of them come within one step
    before = len(policy.seen)
    for generation in burst:
        bench.dispatcher.submit(generation)
    policy.gate.set()
    bench.wait(burst, 30.0)
    bench.dispatcher.cancel(running, errors.Cancelled("enough"))
    bench.wait([running])
    bench.dispatcher.stop()
    grown = [after - earlier for earlier, after in pairwise(policy.seen[before - 1 :])]
    assert max(grown) == 512  # orders between two steps at most
