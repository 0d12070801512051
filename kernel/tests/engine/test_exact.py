"""Greedy tokens of the torch engine against transformers `generate`, float32."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from aios_kernel.engine.protocol import SamplingParams

Prompt = Callable[..., list[int]]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 64])
def test_alone(driver: Any, oracle: Any, prompt: Prompt, length: int) -> None:
    tokens = prompt(length)
    oracle.check(tokens, driver.answer(driver.open(tokens), 24, chunk=1000))


def test_batch_of_mixed_lengths_in_random_chunks(driver: Any, oracle: Any, prompt: Prompt) -> None:
    prompts = [prompt(length) for length in (3, 16, 41, 100, 180)]
    contexts = [driver.open(tokens) for tokens in prompts]
    answers = driver.answers(contexts, [30, 12, 24, 18, 6], chunk=24)
    for tokens, answer in zip(prompts, answers, strict=True):
        oracle.check(tokens, answer)


def test_prefill_joins_running_decodes(driver: Any, oracle: Any, prompt: Prompt) -> None:
    early = driver.open(prompt(20))
    begun = driver.answer(early, 5)
    late = driver.open(prompt(90))
    rest, answer = driver.answers([early, late], [20, 10], chunk=16)
    oracle.check(prompt(20), begun + rest)
    oracle.check(prompt(90), answer)


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_long_decode_of_a_steady_batch(driver: Any, oracle: Any, prompt: Prompt, budget: int) -> None:
    """Longer than the room in the gathered KV that a steady batch keeps; once without memory for it."""
    driver.engine._dense._budget = budget
    prompts = [prompt(length) for length in (20, 30, 33)]
    contexts = [driver.open(tokens) for tokens in prompts]
    answers = driver.answers(contexts, [100, 90, 100])
    for tokens, answer in zip(prompts, answers, strict=True):
        oracle.check(tokens, answer)


def test_members_of_a_batch_come_and_go(driver: Any, oracle: Any, prompt: Prompt) -> None:
    prompts = [prompt(20 + number, number) for number in range(4)]
    contexts = [driver.open(tokens) for tokens in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    for present in ([0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 2], [0, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [3, 1]):
        rows = [contexts[row] for row in present]
        for row, got in zip(present, driver.answers(rows, [3] * len(rows)), strict=True):
            answers[row] += got
        if present == [0, 2]:
            contexts[0] = driver.engine.restore(driver.engine.snapshot(contexts[0]))
    for tokens, answer in zip(prompts, answers, strict=True):
        oracle.check(tokens, answer)


def test_a_member_of_a_steady_batch_skips_cached_tokens(driver: Any, oracle: Any, prompt: Prompt) -> None:
    known = prompt(48)
    driver.answer(driver.open(known), 1)
    other = driver.open(prompt(100, seed=1))  # so much longer that the jumper stays in a group of its own
    jumper = driver.open(known[:13], sampling=SamplingParams(forced=tuple(known[13:17])))
    driver.engine.step([(jumper, 13), (other, 100)])
    for _ in range(3):
        driver.engine.step([(jumper, 1), (other, 1)])
    driver.engine.append(jumper, known[17:40])
    (jump, _) = driver.engine.step([(jumper, 17), (other, 1)])
    assert (jump.computed, jumper.computed) == (1, 33)
    for _ in range(7):
        driver.engine.step([(jumper, 1), (other, 1)])
    (first,) = jumper.tokens[40:]
    oracle.check(known[:40], [first, *driver.answer(jumper, 10)])


def test_prefix_hit_of_prompt_and_generated_tokens(driver: Any, oracle: Any, prompt: Prompt) -> None:
    first = driver.open(prompt(50))
    answer = driver.answer(first, 30)
    driver.engine.release(first)
    turn = [*prompt(50), *answer, *prompt(9, seed=1)]
    second = driver.open(turn)
    assert second.cached == 64  # the 79 tokens with KV fill four blocks
    oracle.check(turn, driver.answer(second, 20))


def test_same_prefix_in_one_step_is_computed_once(driver: Any, oracle: Any, prompt: Prompt) -> None:
    prompts = [[*prompt(64), *prompt(7, seed=seed)] for seed in range(4)]
    contexts = [driver.open(tokens) for tokens in prompts]
    outputs = driver.engine.step([(context, 1000) for context in contexts])
    assert [output.computed for output in outputs] == [71, 7, 7, 7]
    assert [context.cached for context in contexts] == [0, 64, 64, 64]
    for tokens, context, rest in zip(prompts, contexts, driver.answers(contexts, [10] * 4), strict=True):
        oracle.check(tokens, [context.tokens[71], *rest])


def test_append_continues_without_prefilling_again(driver: Any, oracle: Any, prompt: Prompt) -> None:
    context = driver.open(prompt(30))
    driver.answer(context, 7)
    said = list(context.tokens)
    driver.engine.append(context, prompt(11))
    assert context.pending == 12
    oracle.check([*said, *prompt(11)], driver.answer(context, 20, chunk=5))


@pytest.mark.parametrize("seed", range(3))
def test_snapshot_and_restore_at_random_points(driver: Any, oracle: Any, prompt: Prompt, seed: int) -> None:
    chooser = random.Random(seed)
    tokens = prompt(70, seed=seed)
    context, answer = driver.open(tokens), []
    while len(answer) < 25:
        (output,) = driver.engine.step([(context, chooser.randint(1, 40))])
        answer += [output.token] if output.token is not None else []
        if chooser.random() < 0.4:
            snapshot = driver.engine.snapshot(context)
            if chooser.random() < 0.5:  # someone else takes the pool meanwhile
                other = driver.open(prompt(200, seed=chooser.random()))
                driver.answer(other, 3)
                driver.engine.release(other)
            context = driver.engine.restore(snapshot)
    oracle.check(tokens, answer)


def test_fork_copies_on_write(driver: Any, oracle: Any, prompt: Prompt) -> None:
    context = driver.open(prompt(37))
    begun = driver.answer(context, 4)
    twins = [driver.engine.fork(context) for _ in range(3)]
    driver.engine.append(twins[2], prompt(5))
    said = list(twins[2].tokens)
    rests = driver.answers([context, *twins], [20, 20, 20, 20])
    for rest in rests[:3]:
        oracle.check(prompt(37), begun + rest)
    oracle.check(said, rests[3])


def test_bfloat16_prefers_what_the_float32_model_finds_likely(
    make_engine: Any, drive: Any, prompt: Prompt, oracles: Any
) -> None:
    driver = drive(make_engine("llama", dtype=torch.bfloat16))
    prompts = [prompt(40, seed=seed) for seed in range(8)]
    answers = driver.answers([driver.open(tokens) for tokens in prompts], [1] * 8)
    for tokens, (token,) in zip(prompts, answers, strict=True):
        assert token in oracles("llama").logits(tokens)[-1].topk(5).indices
