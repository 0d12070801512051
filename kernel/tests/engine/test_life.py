"""A random life of the torch engine, every token of it checked against the plain model, every block accounted for."""

from __future__ import annotations

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

from aios_kernel.engine.protocol import KvExhausted, SamplingParams
from aios_kernel.engine.torch import TorchEngine

TIE = 1e-3
VOCAB = 40
BLOCKS = 14
LONGEST = 120
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

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(11)
        self.plain = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
        model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
        model.load_state_dict(self.plain.state_dict())
        model.get_input_embeddings().register_forward_hook(self._fail)
        self.faults = 0
        self.now_s = 0.0
        self.path = folder / "snapshot"
        self.engine = TorchEngine(model, kv_tokens=BLOCKS * 16)
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

    def check(self, tokens: list[int], token: int) -> None:
        """Fail unless `token` is the plain model's choice behind `tokens`, or ties with it."""
        key = tuple(tokens)
        if key not in self._known:
            with torch.inference_mode():
                self._known[key] = self.plain(torch.tensor([tokens])).logits[0, -1]
        logits = self._known[key]
        assert float(logits.max() - logits[token]) <= TIE, f"{token} behind {tokens}, not {int(logits.argmax())}"


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
        self.said: dict[int, bytes] = {}

    @rule(stem=st.integers(0, 2), length=st.integers(1, 60), salt=st.sampled_from([b"", b"x"]))
    def open(self, stem: int, length: int, salt: bytes) -> None:
        tokens = [(number * (stem + 3) + number // 7) % VOCAB for number in range(length)]
        self.live.append(self.engine.open(tokens, sampling=SamplingParams(), salt=salt))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), faults=st.sampled_from([0] * 9 + [1, 2]))
    def step(self, data: st.DataObject, faults: int) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.live), unique_by=id, min_size=1, max_size=4))
        plan = [(context, min(data.draw(st.integers(1, 40)), context.pending)) for context in chosen]
        free, need = self.engine.kv_free(), sum(self.engine.kv_need(context, count) for context, count in plan)
        before = [(context.computed, list(context.tokens)) for context in chosen]
        self.world.faults = faults
        try:
            outputs = self.engine.step(plan)
        except KvExhausted:
            assert need > free
            assert before == [(context.computed, context.tokens) for context in chosen]
            return
        finally:
            self.world.faults = 0
        for output, context, (computed, tokens) in zip(outputs, chosen, before, strict=True):
            if output.error is not None:
                assert "no memory" in output.error
                assert (context.computed, context.tokens) == (computed, tokens)
            elif output.token is not None:
                assert context.tokens == [*tokens, output.token]
                self.world.check(tokens, output.token)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20))
    def append(self, data: st.DataObject, tokens: list[int]) -> None:
        context = data.draw(st.sampled_from(self.live))
        if len(context.tokens) < LONGEST:
            self.engine.append(context, tokens)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        self.live.append(self.engine.fork(data.draw(st.sampled_from(self.live))))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), disk=st.booleans())
    def snapshot(self, data: st.DataObject, disk: bool) -> None:
        context = data.draw(st.sampled_from(self.live))
        self.live.remove(context)
        snapshot = self.engine.snapshot(context)
        if disk:
            snapshot.save(self.world.path)
            snapshot = self.engine.load_snapshot(self.world.path)
        self.stored.append(snapshot)

    @precondition(lambda self: self.stored)
    @rule(data=st.data(), keep=st.booleans())
    def restore(self, data: st.DataObject, keep: bool) -> None:
        snapshot = data.draw(st.sampled_from(self.stored))
        try:
            self.live.append(self.engine.restore(snapshot))
        except KvExhausted:
            return
        if not keep:
            self.stored.remove(snapshot)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        context = data.draw(st.sampled_from(self.live))
        self.live.remove(context)
        self.engine.release(context)

    @precondition(lambda self: self.live)
    @rule(
        data=st.data(),
        priority=st.integers(-1, 2),
        ttl_s=st.sampled_from([None, 0.0, 5.0]),
        pinned=st.sampled_from([False, False, True]),
    )
    def hold(self, data: st.DataObject, priority: int, ttl_s: float | None, pinned: bool) -> None:
        context = data.draw(st.sampled_from(self.live))
        self.held.append(self.engine.hold(context, priority=priority, ttl_s=ttl_s, pinned=pinned))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), again=st.booleans())
    def drop(self, data: st.DataObject, again: bool) -> None:
        hold = data.draw(st.sampled_from(self.held))
        self.engine.drop(hold)
        if not again:
            self.held.remove(hold)

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.world.now_s += seconds

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


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        made = World(Path(folder))
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
def test_no_block_is_lost_and_no_token_wrong_in_two_thousand_lives(world: World) -> None:
    live(world, 2000)
