"""A random life of the torch engine, every token of it checked against the plain model, every block accounted for."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from transformers import LlamaConfig, LlamaForCausalLM

from aios_kernel.engine.protocol import KvExhausted, SamplingParams, StepOutput
from aios_kernel.engine.torch import TorchEngine

TIE = 1e-3
VOCAB = 40
BLOCKS = 14
LONGEST = 120
MOST = 6
"""Contexts at a time, so that the pool has room for some progress."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": None,
}


class World:
    """One engine with its oracle, a clock that is moved by hand, and a fault that can be set."""

    def __init__(self, folder: Path, *, native: bool) -> None:
        torch.manual_seed(11)
        self.plain = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
        model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
        model.load_state_dict(self.plain.state_dict())
        model.get_input_embeddings().register_forward_hook(self._fail)
        self.faults = 0
        self.now_s = 0.0
        self.path = folder / "snapshot"
        self.engine = TorchEngine(model, kv_tokens=BLOCKS * 16, native=native)
        self.engine._pool._clock = lambda: self.now_s
        self.engine._swapper.mover.inline_bytes = 0  # as large contexts: the copies run beside the steps
        self._known: dict[tuple[int, ...], torch.Tensor] = {}

    def _fail(self, _module: Any, _args: Any, _output: Any) -> None:
        if self.faults:
            self.faults -= 1
            raise MemoryError("no memory, as the test wants it")

    def empty(self) -> None:
        """Forget what earlier lives left in the prefix cache, so that a life can be repeated."""
        pool = self.engine._pool
        pool.release([pool.allocate() for _ in range(pool.available)])

    def check(self, tokens: list[int], output: StepOutput) -> None:
        """Fail unless the plain model would say the same behind `tokens`, with the same probability, or ties."""
        key = tuple(tokens)
        if key not in self._known:
            with torch.inference_mode():
                self._known[key] = torch.log_softmax(self.plain(torch.tensor([tokens])).logits[0, -1], dim=-1)
        logprobs, token = self._known[key], output.token or 0
        assert float(logprobs.max() - logprobs[token]) <= TIE, f"{token} behind {tokens}, not {int(logprobs.argmax())}"
        assert output.logprob is not None
        assert abs(float(logprobs[token]) - output.logprob) <= TIE, f"{output.logprob} behind {tokens}"


SEEDS = st.integers(0, 1 << 20)


class Life(RuleBasedStateMachine):
    """Opens, appends, steps, forks, snapshots in memory and on disk, cancels, holds, faults, on a pool for few."""

    world: World

    @initialize()
    def begin(self) -> None:
        self.engine = self.world.engine
        self.pool = self.engine._pool
        self.world.empty()
        self.live: list[Any] = []
        self.stored: list[Any] = []
        self.held: list[Any] = []

    @rule(seed=SEEDS, stem=st.integers(0, 2), length=st.integers(1, 60), salt=st.sampled_from([b"", b"x"]))
    def open(self, seed: int, stem: int, length: int, salt: bytes) -> None:
        if len(self.live) >= MOST:
            self.cancel(seed)
        tokens = [(number * (stem + 3) + number // 7) % VOCAB for number in range(length)]
        self.live.append(self.engine.open(tokens, sampling=SamplingParams(top_logprobs=0), salt=salt))

    @precondition(lambda self: self.live)
    @rule(seed=SEEDS, tokens=st.lists(st.integers(0, VOCAB - 1), max_size=20), ended=st.booleans())
    def open_the_next_turn(self, seed: int, tokens: list[int], ended: bool) -> None:
        """A prompt that goes on behind some of what another has said, often within a block."""
        chooser = random.Random(seed)
        context = chooser.choice(self.live)
        prompt = [*context.tokens[: chooser.randint(1, len(context.tokens))], *tokens][:LONGEST]
        if ended or len(self.live) >= MOST:
            self.live.remove(context)
            self.engine.release(context)
        self.live.append(self.engine.open(prompt, sampling=SamplingParams(top_logprobs=0)))

    @precondition(lambda self: self.live)
    @rule(seed=SEEDS, rounds=st.integers(1, 4))
    def step_some(self, seed: int, rounds: int) -> None:
        chooser = random.Random(seed)
        for _ in range(rounds):
            chosen = [context for context in self.live if chooser.random() < 0.6]
            self.step([(context, chooser.choice([1, 5, 16, 40])) for context in chosen])

    @precondition(lambda self: self.live)
    @rule(rounds=st.integers(1, 4))
    def step_all(self, rounds: int) -> None:
        for _ in range(rounds):
            self.step([(context, 64) for context in self.live])

    @precondition(lambda self: self.live)
    @rule(seed=SEEDS, faults=st.integers(1, 3))
    def step_with_faults(self, seed: int, faults: int) -> None:
        self.world.faults = faults
        self.step_some(seed, 1)
        self.world.faults = 0

    def step(self, wanted: list[tuple[Any, int]]) -> None:
        plan = [(context, min(count, context.pending)) for context, count in wanted]
        free, need = self.engine.kv_free(), sum(self.engine.kv_need(context, count) for context, count in plan)
        before = [(context.computed, list(context.tokens)) for context, _ in plan]
        try:
            outputs = self.engine.step(plan)
        except KvExhausted:
            assert need > free
            assert before == [(context.computed, context.tokens) for context, _ in plan]
            return
        assert need <= free or self.world.faults
        for output, (context, _), (computed, tokens) in zip(outputs, plan, before, strict=True):
            if output.error is not None:
                assert "no memory" in output.error
                assert (context.computed, context.tokens) == (computed, tokens)
            elif output.token is not None:
                assert context.tokens == [*tokens, output.token]
                self.world.check(tokens, output)

    @precondition(lambda self: self.live)
    @rule(seed=SEEDS, tokens=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20))
    def append(self, seed: int, tokens: list[int]) -> None:
        context = random.Random(seed).choice(self.live)
        if len(context.tokens) < LONGEST:
            self.engine.append(context, tokens)

    @precondition(lambda self: self.live)
    @rule(seed=SEEDS, tokens=st.lists(st.integers(0, VOCAB - 1), max_size=3))
    def fork(self, seed: int, tokens: list[int]) -> None:
        if len(self.live) < MOST:
            twin = self.engine.fork(random.Random(seed).choice(self.live))
            self.engine.append(twin, tokens)
            self.live.append(twin)

    @precondition(lambda self: self.live)
    @rule(seed=SEEDS)
    def fork_behind_a_beginning(self, seed: int) -> None:
        chooser = random.Random(seed)
        if len(self.live) < MOST:
            context = chooser.choice(self.live)
            self.live.append(self.engine.fork(context, at=chooser.randint(1, len(context.tokens))))

    @precondition(lambda self: self.live and len(self.stored) < 3)
    @rule(seed=SEEDS, disk=st.booleans())
    def snapshot(self, seed: int, disk: bool) -> None:
        context = random.Random(seed).choice(self.live)
        self.live.remove(context)
        snapshot = self.engine.snapshot(context)
        if disk:
            snapshot.save(self.world.path)
            snapshot = self.engine.load_snapshot(self.world.path)
        self.stored.append(snapshot)

    @precondition(lambda self: self.stored)
    @rule(seed=SEEDS, keep=st.booleans())
    def restore(self, seed: int, keep: bool) -> None:
        snapshot = random.Random(seed).choice(self.stored)
        try:
            self.live.append(self.engine.restore(snapshot))
        except KvExhausted:
            return
        if not keep:
            self.stored.remove(snapshot)

    @precondition(lambda self: self.live)
    @rule(seed=SEEDS)
    def cancel(self, seed: int) -> None:
        context = random.Random(seed).choice(self.live)
        self.live.remove(context)
        self.engine.release(context)

    @precondition(lambda self: self.live)
    @rule(
        seed=SEEDS,
        priority=st.integers(-1, 2),
        ttl_s=st.sampled_from([None, 0.0, 5.0]),
        pinned=st.sampled_from([False, False, True]),
    )
    def hold(self, seed: int, priority: int, ttl_s: float | None, pinned: bool) -> None:
        context = random.Random(seed).choice(self.live)
        self.held.append(self.engine.hold(context, priority=priority, ttl_s=ttl_s, pinned=pinned))

    @precondition(lambda self: self.held)
    @rule(seed=SEEDS, again=st.booleans(), seconds=st.sampled_from([0.0, 1.0, 10.0]))
    def drop(self, seed: int, again: bool, seconds: float) -> None:
        self.world.now_s += seconds
        hold = random.Random(seed).choice(self.held)
        self.engine.drop(hold)
        if not again:
            self.held.remove(hold)

    @invariant()
    def every_block_is_accounted_for(self) -> None:
        if not hasattr(self, "engine"):
            return
        users = [0] * (BLOCKS + 1)
        for context in self.live:
            for block in context.blocks:
                users[block] += 1
        for pin in self.pool._pins:
            for block, _ in pin.blocks:
                users[block] += 1
        assert users == self.pool._references.tolist()
        assert self.pool.available + self.pool.held == BLOCKS
        assert self.engine.kv_free() == self.pool.available * 16

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for context in self.live:
                self.engine.release(context)
            for hold in self.held:
                self.engine.drop(hold)
            assert self.engine.kv_free() == BLOCKS * 16


@pytest.fixture(scope="module", params=[True, False], ids=["native", "plain"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """With the compiled attention, and without it."""
    with tempfile.TemporaryDirectory() as folder:
        made = World(Path(folder), native=request.param)
        yield made
        made.engine.close()


def live(world: World, runs: int) -> None:
    run_state_machine_as_test(
        type("Machine", (Life,), {"world": world}),
        settings=settings(
            max_examples=runs, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_no_block_is_lost_and_no_token_wrong(world: World) -> None:
    live(world, 60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_block_is_lost_and_no_token_wrong_in_two_thousand_lives(world: World) -> None:
    live(world, 2000)
