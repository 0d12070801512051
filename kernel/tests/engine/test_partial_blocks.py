"""What a block holds in part is used again: the ends of turns, and prompts that part within a block."""

from __future__ import annotations

from typing import Any

import pytest

from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch.beginnings import Beginnings
from aios_kernel.engine.torch.blocks import BlockPool

GREEDY = SamplingParams()


@pytest.fixture(params=[True, False], ids=["native", "plain"])
def native(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def engine(make_engine: Any) -> Any:
    return make_engine(kv_tokens=512)


def answer(engine: Any, context: Any, n_tokens: int) -> list[int]:
    """Emit tokens; their KV but for the last one's is there."""
    out: list[int] = []
    while len(out) < n_tokens:
        (output,) = engine.step([(context, 100)])
        out += [output.token] if output.token is not None else []
    return out


@pytest.mark.parametrize("length", [7, 16, 37])
@pytest.mark.parametrize("ended", [True, False])
def test_the_next_turn_computes_only_what_is_new(
    engine: Any, oracles: Any, prompt: Any, length: int, ended: bool
) -> None:
    first = engine.open(prompt(length), sampling=GREEDY)
    said = answer(engine, first, 6)
    if ended:
        engine.release(first)
    else:
        engine.hold(first)  # as what is parked
    tokens = [*prompt(length), *said[:5], *prompt(9, seed=1)]
    assert engine.match(tokens) == length + 5
    free = engine.kv_free()
    second = engine.open(tokens, sampling=GREEDY)
    (output,) = engine.step([(second, 100)])
    assert (output.computed, second.cached) == (9, length + 5)
    oracles("llama").check(tokens, [output.token, *answer(engine, second, 8)])
    if not ended:
        oracles("llama").check(prompt(length), [*said, *answer(engine, first, 8)])  # nothing of it was written over
        engine.release(first)
    engine.release(second)
    assert engine.kv_free() == engine.capabilities.kv_tokens >= free


def test_prompts_that_part_within_a_block_share_its_beginning(engine: Any, oracles: Any, prompt: Any) -> None:
    system = prompt(43)
    prompts = [[*system, *prompt(12, seed=seed)] for seed in range(1, 5)]
    computed = []
    for tokens in prompts:
        context = engine.open(tokens, sampling=GREEDY)
        (output,) = engine.step([(context, 100)])
        computed.append(output.computed)
        oracles("llama").check(tokens, [output.token, *answer(engine, context, 5)])
        engine.release(context)
    assert computed == [55, 12, 12, 12]


def test_a_history_that_is_rendered_otherwise_keeps_what_is_common(engine: Any, prompt: Any) -> None:
    context = engine.open(prompt(70), sampling=GREEDY)
    answer(engine, context, 3)
    engine.release(context)
    other = engine.open([*prompt(70)[:61], *prompt(30, seed=3)], sampling=GREEDY)
    (output,) = engine.step([(other, 100)])
    assert (other.cached, output.computed) == (61, 30)


def test_the_same_prompt_again_computes_one_token(engine: Any, prompt: Any) -> None:
    for expected in (45, 1, 1):
        context = engine.open(prompt(45), sampling=GREEDY)
        (output,) = engine.step([(context, 100)])
        assert output.computed == expected


def test_a_chunk_takes_no_more_than_it_was_given(engine: Any, prompt: Any) -> None:
    engine.release(_computed(engine, prompt(30)))
    context = engine.open([*prompt(30), 5, 6], sampling=GREEDY)
    assert context.computed == 16
    (output,) = engine.step([(context, 9)])
    assert (output.computed, context.computed) == (0, 25)
    (output,) = engine.step([(context, 100)])
    assert (output.computed, context.cached) == (7, 25)  # within a block nothing more is looked for


def test_a_full_pool_needs_no_block_more_for_it(engine: Any, oracles: Any, prompt: Any) -> None:
    """The copy goes where the tokens would have gone, even if that is the block that was copied."""
    engine.release(_computed(engine, prompt(512)))
    tokens = [*prompt(512)[:509], 7]
    context = engine.open(tokens, sampling=GREEDY)
    (output,) = engine.step([(context, 100)])
    assert (output.computed, context.cached) == (1, 509)
    oracles("llama").check(tokens, [output.token])


def test_prompt_scores_and_other_domains_take_nothing(engine: Any, prompt: Any) -> None:
    engine.release(_computed(engine, prompt(30)))
    for options in ({"salt": b"other"}, {"sampling": SamplingParams(prompt_logprobs=0)}):
        context = engine.open(prompt(30), **{"sampling": GREEDY, **options})
        (output,) = engine.step([(context, 100)])
        assert (output.computed, context.cached) == (30, 0)


def test_a_pinned_end_of_a_turn_is_written_by_nobody(engine: Any, oracles: Any, prompt: Any) -> None:
    first = engine.open(prompt(20), sampling=GREEDY)
    said = answer(engine, first, 3)
    hold = engine.hold(first, pinned=True)
    assert hold.n_tokens == 22
    oracles("llama").check(prompt(20), [*said, *answer(engine, first, 20)])
    engine.release(first)
    assert engine.match([*prompt(20), *said]) == 22
    engine.drop(hold)
    assert engine.kv_free() == engine.capabilities.kv_tokens


def test_beginnings_find_the_longest_and_forget() -> None:
    known = Beginnings()
    known.add(1, b"p", [1, 2, 3])
    known.add(2, b"p", [1, 2, 4, 5])
    known.add(3, b"q", [1, 2, 4, 6])
    assert known.longest(b"p", [1, 2, 4, 6]) == (2, 3)
    assert known.longest(b"p", [1, 2, 3, 6]) == (1, 3)
    assert known.longest(b"p", [2]) == known.longest(b"r", [1]) == known.longest(b"p", []) == (0, 0)
    known.add(2, b"p", [1, 2, 4, 5, 6])  # it has grown
    assert (known.length(2), known.length(9)) == (5, 0)
    known.remove(2)
    known.remove(2)
    assert known.longest(b"p", [1, 2, 4, 6]) == (1, 2)


def test_a_block_is_adopted_only_when_nobody_else_needs_it() -> None:
    pool = BlockPool(4)
    block = pool.allocate()
    pool.publish(block, b"k", b"p", [1, 2, 3])
    assert not pool.adopt(block, 3)  # somebody has it
    pool.release([block])
    generation = pool.generation(block)
    assert not pool.adopt(block, 2)  # it holds more than is wanted
    assert pool.adopt(block, 3)
    assert (pool.references(block), pool.generation(block)) == (1, generation + 1)
    pool.publish(block, b"longer", b"p", [1, 2, 3, 4])
    assert (pool.find(b"k"), pool.find(b"longer")) == (None, block)
    pool.publish(block, b"k", b"p", [1, 2, 3])
    assert pool.find(b"longer") == block  # it is not made shorter
    pool.withdraw(block)
    assert pool.begins_like(b"p", [1, 2, 3]) == (0, 0)


def _computed(engine: Any, tokens: list[int]) -> Any:
    context = engine.open(tokens, sampling=GREEDY)
    engine.step([(context, len(tokens))])
    return context
