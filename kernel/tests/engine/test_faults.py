"""What goes wrong for one context stays with that context, and the pool is whole afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.errors import UnknownModel

GREEDY = SamplingParams()
BAD = 13
"""A token whose embedding is not a number, or makes the forward raise."""


@pytest.fixture
def engine(make_engine: Any) -> Any:
    return make_engine(kv_tokens=512)


def good(prompt: Any, length: int, seed: int = 0) -> list[int]:
    return [token if token != BAD else BAD + 1 for token in prompt(length, seed)]


def poison(engine: Any, value: float | torch.Tensor = float("nan")) -> None:
    with torch.no_grad():
        engine._runner.model.get_input_embeddings().weight[BAD] = value


def raise_on_bad(engine: Any) -> None:
    def hook(_module: Any, args: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        if (args[0] == BAD).any():
            raise RuntimeError("bad token")

    engine._runner.model.get_input_embeddings().register_forward_hook(hook)


@pytest.mark.parametrize("fault", [poison, raise_on_bad])
def test_only_the_context_concerned_fails(engine: Any, oracles: Any, drive: Any, prompt: Any, fault: Any) -> None:
    fault(engine)
    driver = drive(engine)
    fine = [driver.open(good(prompt, length)) for length in (20, 45)]
    bad = driver.open([*good(prompt, 30), BAD])
    outputs = engine.step([(fine[0], 100), (bad, 100), (fine[1], 100)])
    assert [output.error is None for output in outputs] == [True, False, True]
    assert outputs[1].token is None
    engine.release(bad)
    answers = driver.answers(fine, [15, 15])
    for context, answer, length in zip(fine, answers, (20, 45), strict=True):
        oracles("llama").check(good(prompt, length), [context.tokens[length], *answer])
        engine.release(context)
    assert engine.kv_free() == engine.capabilities.kv_tokens


def test_a_forward_that_raises_leaves_the_context_as_it_was(engine: Any, drive: Any, prompt: Any) -> None:
    raise_on_bad(engine)
    context = engine.open([*good(prompt, 40), BAD], sampling=GREEDY)
    engine.step([(context, 20)])
    before = (context.computed, list(context.tokens), engine.kv_free())
    (output,) = engine.step([(context, 100)])
    assert output.error == "RuntimeError: bad token"
    assert (context.computed, list(context.tokens), engine.kv_free()) == before


def test_blocks_of_a_failed_step_are_not_shared(engine: Any, oracles: Any, drive: Any, prompt: Any) -> None:
    """Two contexts with one prefix, of which the first to compute it fails."""
    raise_on_bad(engine)
    prefix = good(prompt, 64)
    bad, fine = engine.open([*prefix, BAD], sampling=GREEDY), engine.open([*prefix, 5], sampling=GREEDY)
    outputs = engine.step([(bad, 100), (fine, 100)])
    assert outputs[0].error is not None
    assert outputs[1].computed == 65
    answer = drive(engine).answer(fine, 10)
    oracles("llama").check([*prefix, 5], [outputs[1].token, *answer])


def test_bad_kv_never_reaches_the_prefix_cache_or_a_later_context(
    engine: Any, oracles: Any, drive: Any, prompt: Any
) -> None:
    poison(engine)
    driver = drive(engine)
    tokens = [*good(prompt, 20), BAD, *good(prompt, 80, 1)]
    context = driver.open(tokens)
    while (output := engine.step([(context, 24)])[0]).error is None:  # the first chunks fail unseen
        pass
    assert "finite" in output.error
    engine.release(context)
    assert driver.open(tokens).cached == 0
    poison(engine, oracles("llama").model.get_input_embeddings().weight[BAD])  # the cure: answers may hold this token
    # Short contexts take the whole pool: each ends in a block whose other half is what was there before.
    everything = [driver.open(good(prompt, 20, seed)) for seed in range(16)]
    for seed, answer in enumerate(driver.answers(everything, [8] * 16)):
        oracles("llama").check(good(prompt, 20, seed), answer)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bad_kv_in_a_block_does_not_spoil_who_takes_its_beginning(
    make_engine: Any, prompt: Any, native: bool, dtype: torch.dtype
) -> None:
    engine = make_engine(kv_tokens=512, dtype=dtype)
    poison(engine)
    bad = engine.open([*good(prompt, 21), BAD, *good(prompt, 80, 1)], sampling=GREEDY)
    unseen = [engine.step([(bad, n_tokens)])[0] for n_tokens in (21, 30)]
    assert [output.error for output in unseen] == [None, None]
    alone = make_engine(kv_tokens=512, dtype=dtype)
    tokens = [*good(prompt, 21), *good(prompt, 10, 2)]
    (expected,) = alone.step([(alone.open(tokens, sampling=GREEDY), 100)])
    fine = engine.open(tokens, sampling=GREEDY)
    (output,) = engine.step([(fine, 100)])
    assert (fine.cached, output.computed) == (21, 10)
    assert (output.error, output.token) == (None, expected.token)


class Refusing:
    """A grammar that fails in one of its ways."""

    def __init__(self, way: str) -> None:
        self.way = way

    def fill_mask(self, mask: Any, row: int) -> None:
        if self.way == "raises":
            raise RuntimeError("broken grammar")
        if self.way == "forbids all":
            mask[row] = 0

    def accept(self, token: int) -> None:
        if self.way == "breaks":
            raise RuntimeError("broken grammar")
        raise ValueError("it is not allowed here")

    def accept_later(self, token: int) -> None:
        self.accept(token)

    def finished(self) -> bool:
        return False

    def fork(self) -> Refusing:
        return self


@pytest.mark.parametrize("way", ["raises", "forbids all", "refuses", "breaks"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_grammar_ends_its_own_context(engine: Any, prompt: Any, way: str, temperature: float) -> None:
    bad = engine.open(prompt(10), sampling=SamplingParams(temperature=temperature), grammar=Refusing(way))
    fine = engine.open(prompt(12), sampling=GREEDY)
    outputs = engine.step([(bad, 100), (fine, 100)])
    assert outputs[0].error is not None
    assert outputs[0].token is None
    assert outputs[1].token is not None
    assert outputs[1].error is None
    engine.release(bad)
    assert engine.open(prompt(10), sampling=GREEDY).pending == 10


def test_misuse_is_told(engine: Any, prompt: Any) -> None:
    context = engine.open(prompt(10), sampling=GREEDY)
    with pytest.raises(ValueError, match="twice"):
        engine.step([(context, 1), (context, 1)])
    with pytest.raises(ValueError, match="less than one"):
        engine.step([(context, 0)])
    with pytest.raises(ValueError, match="at least one token"):
        engine.open([], sampling=GREEDY)
    with pytest.raises(ValueError, match="9999 is not of this model"):
        engine.append(context, [9999])
    with pytest.raises(UnknownModel, match="LoRA"):
        engine.open(prompt(3), sampling=GREEDY, lora="mine")
    engine.release(context)
    with pytest.raises(ValueError, match="released"):
        engine.step([(context, 1)])


def test_salts_keep_trust_domains_apart(engine: Any, prompt: Any) -> None:
    first = engine.open(prompt(50), sampling=GREEDY, salt=b"red")
    engine.step([(first, 100)])
    assert engine.open(prompt(50), sampling=GREEDY, salt=b"red").cached == 48
    assert engine.open(prompt(50), sampling=GREEDY, salt=b"blue").cached == 0
    assert engine.open(prompt(50), sampling=GREEDY).cached == 0


def test_the_least_recently_used_prefix_goes_first(engine: Any, prompt: Any) -> None:
    for seed in range(2):
        context = engine.open(prompt(100, seed), sampling=GREEDY)
        engine.step([(context, 200)])
        engine.release(context)
    engine.release(engine.open(prompt(100, 0), sampling=GREEDY))  # used again
    big = engine.open(prompt(360, 9), sampling=GREEDY)
    engine.step([(big, 400)])
    assert engine.open(prompt(100, 0), sampling=GREEDY).cached == 96
    assert engine.open(prompt(100, 1), sampling=GREEDY).cached < 96


def test_restored_contexts_share_their_prefix_again(engine: Any, prompt: Any) -> None:
    prefix = prompt(160)
    contexts = [engine.open([*prefix, seed], sampling=GREEDY) for seed in range(2)]
    for context in contexts:
        engine.step([(context, 200)])
    free = engine.kv_free()
    snapshots = [engine.snapshot(context) for context in contexts]
    restored = [engine.restore(snapshot) for snapshot in snapshots]
    assert engine.kv_free() == free
    assert restored[0].blocks[:10] == restored[1].blocks[:10]


def test_a_snapshot_is_exact_to_the_bit_and_lasts(engine: Any, prompt: Any) -> None:
    context = engine.open(prompt(100), sampling=GREEDY)
    engine.step([(context, 100)])
    kept = engine._memory.read(context.blocks)
    snapshot = engine.snapshot(context)
    other = engine.open(prompt(500, 5), sampling=GREEDY)  # overwrites every block
    engine.step([(other, 500)])
    engine.release(other)
    for _ in range(2):
        restored = engine.restore(snapshot)
        assert all(map(torch.equal, engine._memory.read(restored.blocks), kept))
        engine.step([(restored, 1)])
        engine.release(restored)
