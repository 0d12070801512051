"""Log-probabilities of the prompt's tokens, however the prompt is cut and whatever is cached."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aios_kernel.engine.protocol import SamplingParams, TokenScore


def told(engine: Any, context: Any, chunk: int) -> tuple[list[TokenScore], int]:
    """Steps a context until it emits; gives the scores and the token."""
    scores: list[TokenScore] = []
    while True:
        (output,) = engine.step([(context, chunk)])
        assert output.error is None
        scores += output.prompt
        if output.token is not None:
            return scores, output.token


@pytest.mark.parametrize("chunk", [1, 7, 16, 4096])
def test_they_are_the_models_own(make_engine: Any, oracles: Any, prompt: Any, chunk: int) -> None:
    engine, tokens = make_engine(), prompt(50)
    expected = torch.log_softmax(oracles("llama").logits(tokens), dim=-1)
    warm = engine.open(tokens, sampling=SamplingParams())
    engine.step([(warm, 4096)])
    context = engine.open(tokens, sampling=SamplingParams(prompt_logprobs=2))
    assert context.cached == 0
    scores, token = told(engine, context, chunk)
    assert [score.token for score in scores] == tokens[1:]
    assert token == int(expected[-1].argmax())
    for place, score in enumerate(scores):
        assert score.logprob == pytest.approx(float(expected[place, tokens[place + 1]]), abs=1e-4)
        best = expected[place].topk(2)
        assert [value for _, value in score.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    (output,) = engine.step([(context, 1)])
    assert output.prompt == []


def test_long_prompts_are_told_in_parts_and_neighbours_go_on(make_engine: Any, prompt: Any) -> None:
    engine, tokens = make_engine(), prompt(600)
    context = engine.open(tokens, sampling=SamplingParams(prompt_logprobs=0))
    other = engine.open(prompt(20, 1), sampling=SamplingParams())
    first, second = engine.step([(context, 4096), (other, 4096)])
    assert first.computed == len(first.prompt) < 600
    assert (second.token is not None, second.prompt) == (True, [])
    assert all(score.top == [] for score in first.prompt)
    scores, _ = told(engine, context, 4096)
    assert len(first.prompt) + len(scores) == 599


def test_a_prompt_of_one_token_has_none(make_engine: Any) -> None:
    engine = make_engine()
    scores, _ = told(engine, engine.open([5], sampling=SamplingParams(prompt_logprobs=1)), 10)
    assert scores == []
