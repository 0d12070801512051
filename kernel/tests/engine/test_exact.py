"""Batches whose members stay, come and go, for what the engine keeps from step to step: tokens against `generate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aios_kernel.engine.protocol import SamplingParams

Prompt = Callable[..., list[int]]
pytestmark = [
    pytest.mark.parametrize("family", ["llama", "gemma2"], scope="session"),
    pytest.mark.parametrize("native", [True, False], ids=["native", "plain"]),
]


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_long_decode_of_a_steady_batch(driver: Any, oracle: Any, prompt: Prompt, budget: int) -> None:
    """Longer than the room in the gathered KV that a steady batch keeps; once without memory for it."""
    if driver.engine._dense is not None:
        driver.engine._dense._budget = budget
    prompts = [prompt(length) for length in (20, 30, 33)]
    contexts = [driver.open(tokens) for tokens in prompts]
    answers = driver.answers(contexts, [100, 90, 100])
    for tokens, answer in zip(prompts, answers, strict=True):
        oracle.check(tokens, answer)


def test_a_steady_batch_outgrows_its_room_and_is_forked(
    driver: Any, oracle: Any, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables with room for two blocks more; a twin that shares everything goes its own way in the middle of a block."""
    monkeypatch.setattr("aios_kernel.engine.torch.decoding._SPARE", 2)
    prompts = [prompt(48), [*prompt(32), *prompt(9, seed=3)], prompt(17, seed=4)]
    contexts = [driver.open(tokens) for tokens in prompts]
    answers = driver.answers(contexts, [60, 60, 60])
    twin = driver.engine.fork(contexts[0])
    more = driver.answers([*contexts, twin], [20, 20, 20, 20])
    oracle.check(prompts[0], answers[0] + more[3])
    answers = [first + then for first, then in zip(answers, more, strict=False)]
    for answer, then in zip(answers, driver.answers(contexts, [40, 40, 40]), strict=True):
        answer += then
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
    driver.engine.append(jumper, [*known[17:32], *prompt(8, seed=2)])
    (jump, _) = driver.engine.step([(jumper, 17), (other, 1)])
    assert (jump.computed, jumper.computed) == (1, 33)
    for _ in range(7):
        driver.engine.step([(jumper, 1), (other, 1)])
    (first,) = jumper.tokens[40:]
    oracle.check(jumper.tokens[:40], [first, *driver.answer(jumper, 10)])


def test_bfloat16_prefers_what_the_float32_model_finds_likely(
    make_engine: Any, drive: Any, prompt: Prompt, oracle: Any, family: str
) -> None:
    driver = drive(make_engine(family, dtype=torch.bfloat16))
    prompts = [prompt(40, seed=seed) for seed in range(8)]
    answers = driver.answers([driver.open(tokens) for tokens in prompts], [1] * 8)
    for tokens, (token,) in zip(prompts, answers, strict=True):
        assert token in oracle.logits(tokens)[-1].topk(5).indices
