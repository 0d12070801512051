"""Greedy tokens of every family in every situation, against transformers `generate` in float32.

With the compiled attention and without it. Families with sliding windows have one of 20 tokens: most prompts here are
longer, and answers grow across its border.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

Prompt = Callable[..., list[int]]
pytestmark = pytest.mark.parametrize("native", [True, False], ids=["native", "plain"])


@pytest.mark.parametrize("length", [1, 16, 33])
def test_alone(driver: Any, oracle: Any, prompt: Prompt, length: int) -> None:
    tokens = prompt(length)
    oracle.check(tokens, driver.answer(driver.open(tokens), 12, chunk=1000))


@pytest.mark.parametrize("chunk", [5, 24])
def test_batch_of_mixed_lengths_in_random_chunks(driver: Any, oracle: Any, prompt: Prompt, chunk: int) -> None:
    prompts = [prompt(length) for length in (3, 16, 41, 64, 100)]
    contexts = [driver.open(tokens) for tokens in prompts]
    answers = driver.answers(contexts, [20, 12, 20, 12, 6], chunk=chunk)
    for tokens, answer in zip(prompts, answers, strict=True):
        oracle.check(tokens, answer)


@pytest.mark.parametrize("start", [-1, 0, 1])
def test_across_the_windows_border(driver: Any, oracle: Any, prompt: Prompt, window: int, start: int) -> None:
    """Prompts, chunks and answers that begin or end around one window and around several of them."""
    prompts = [prompt(window + start), prompt(3 * window + start), prompt(2)]
    contexts = [driver.open(tokens) for tokens in prompts]
    first, second, third = contexts
    outputs = driver.engine.step([(first, window - 1), (second, 2 * window + start), (third, 2)])
    answers = [[output.token] if output.token is not None else [] for output in outputs]
    wanted = [window, 6, window + 6]
    rests = driver.answers(contexts, [n - len(got) for n, got in zip(wanted, answers, strict=True)], chunk=window)
    for tokens, begun, rest in zip(prompts, answers, rests, strict=True):
        oracle.check(tokens, begun + rest)


def test_prefill_joins_running_decodes(driver: Any, oracle: Any, prompt: Prompt) -> None:
    early = driver.open(prompt(20))
    begun = driver.answer(early, 5)
    late = driver.open(prompt(90))
    rest, answer = driver.answers([early, late], [15, 10], chunk=16)
    oracle.check(prompt(20), begun + rest)
    oracle.check(prompt(90), answer)


def test_prefix_hit_of_prompt_and_generated_tokens(driver: Any, oracle: Any, prompt: Prompt) -> None:
    first = driver.open(prompt(50))
    answer = driver.answer(first, 30, chunk=1000)
    driver.engine.release(first)
    turn = [*prompt(50), *answer, *prompt(9, seed=1)]
    second = driver.open(turn)
    assert second.cached == 64  # the 79 tokens with KV fill four blocks
    oracle.check(turn, driver.answer(second, 10))


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
    oracle.check([*said, *prompt(11)], driver.answer(context, 10, chunk=5))


def test_snapshot_and_restore_at_random_points(driver: Any, oracle: Any, prompt: Prompt, family: str) -> None:
    chooser = random.Random(family)
    tokens = prompt(64)
    context, answer = driver.open(tokens), []
    while len(answer) < 20:
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
    rests = driver.answers([context, *twins], [12, 12, 12, 12])
    for rest in rests[:3]:
        oracle.check(prompt(37), begun + rest)
    oracle.check(said, rests[3])
