"""Sampling: which tokens can come out, how often, and that it can be repeated."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.sampler import choose

VOCAB = 600


def context(emitted: int = 0, **params: Any) -> TorchContext:
    made = TorchContext([0], sampling=SamplingParams(**params), root=b"")
    made.emitted = emitted
    return made


def draw(logits: torch.Tensor, n: int = 4000, **params: Any) -> Counter[int]:
    contexts = [context(emitted=number, **params) for number in range(n)]
    return Counter(choice.token for choice in choose(logits.expand(n, -1).clone(), contexts))


@pytest.fixture
def logits() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, VOCAB, generator=generator) * 2


def test_temperature_zero_is_argmax(logits: torch.Tensor) -> None:
    (choice,) = choose(logits.clone(), [context(top_p=0.5, top_k=3, min_p=0.9, seed=9)])
    assert choice.token == choice.argmax == int(logits.argmax())
    assert choice.margin is None


def test_margins_are_told_when_asked_for(logits: torch.Tensor) -> None:
    best = logits[0].topk(2).values
    for params in ({"margin": True}, {"forced": (3,)}, {"margin": True, "temperature": 1.0}):
        (choice,) = choose(logits.clone(), [context(**params)])
        assert choice.margin == pytest.approx(float(best[0] - best[1]))


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.3}, {"top_k": 40, "top_p": 0.8}]
)
def test_frequencies_are_those_of_the_distribution(logits: torch.Tensor, params: dict[str, Any]) -> None:
    params = {"temperature": 1.0, "seed": 11} | params
    expected = torch.softmax(logits[0].double() / params["temperature"], dim=-1)
    order = expected.argsort(descending=True)
    if k := params.get("top_k"):
        expected[order[k:]] = 0
    if p := params.get("top_p"):
        kept = expected[order] / expected.sum()
        expected[order[kept.cumsum(0) - kept >= p]] = 0
    expected /= expected.sum()
    found = draw(logits, **params)
    assert {token for token in range(VOCAB) if expected[token] == 0}.isdisjoint(found)
    total = sum(found.values())
    for token in order[:10].tolist():
        sigma = (float(expected[token]) * (1 - float(expected[token])) / total) ** 0.5
        assert abs(found[token] / total - float(expected[token])) <= 5 * sigma + 1e-9


def test_flat_distributions_need_the_whole_vocabulary() -> None:
    found = draw(torch.linspace(0.0, 1e-3, VOCAB)[None], temperature=1.0, top_p=0.9, n=8000)
    assert 500 <= len(found) <= 0.9 * VOCAB + 1
    assert len(draw(torch.zeros(1, 8), temperature=1.0, top_p=0.5, n=200)) == 8  # all are as likely as the last to stay


def test_a_certain_token_is_certain() -> None:
    logits = torch.full((1, VOCAB), float("-inf"))
    logits[0, 77] = 1.0
    for params in ({}, {"top_k": 3}, {"top_p": 0.1}, {"top_p": 1.0}):
        assert set(draw(logits, n=50, temperature=1.0, **params)) == {77}


def test_the_draw_depends_on_seed_and_count_only(logits: torch.Tensor) -> None:
    alone = [choose(logits.clone(), [context(n, temperature=1.0, seed=4)])[0].token for n in range(20)]
    batch = [context(n, temperature=1.0, seed=4) for n in range(20)]
    others = [context(temperature=0.7, top_k=9, seed=5), context(), context(temperature=2.0, top_p=0.4)]
    mixed = choose(logits.expand(23, -1).clone(), [*others, *batch])
    assert [choice.token for choice in mixed[3:]] == alone
    assert [choose(logits.clone(), [context(n, temperature=1.0, seed=5)])[0].token for n in range(20)] != alone


def test_logprobs_are_the_models_own(logits: torch.Tensor) -> None:
    expected = torch.log_softmax(logits[0], dim=-1)
    (choice,) = choose(logits.clone(), [context(temperature=3.0, seed=1, top_logprobs=4)])
    assert choice.logprob == pytest.approx(float(expected[choice.token]), abs=1e-5)
    values, tokens = expected.topk(4)
    assert [token for token, _ in choice.top] == tokens.tolist()
    assert [value for _, value in choice.top] == pytest.approx(values.tolist(), abs=1e-5)
    (all_of_them,) = choose(logits.clone(), [context(top_logprobs=VOCAB)])
    assert sum(2.718281828**value for _, value in all_of_them.top) == pytest.approx(1.0, abs=1e-4)
    (none,) = choose(logits.clone(), [context()])
    assert (none.logprob, none.top) == (None, [])


def test_forced_tokens_come_first_then_the_sampler(logits: torch.Tensor) -> None:
    forced = (5, 6)
    made = context(forced=forced)
    tokens = [choose(logits.clone(), [made])[0] for _ in range(3)]
    assert [choice.token for choice in tokens] == [5, 6, int(logits.argmax())]
    assert {choice.argmax for choice in tokens} == {int(logits.argmax())}


def test_sampled_contexts_survive_a_snapshot(make_engine: Any, drive: Any, prompt: Any) -> None:
    sampling = SamplingParams(temperature=0.9, top_p=0.95, seed=123)
    expected = (driver := drive(make_engine())).answer(driver.open(prompt(30), sampling=sampling), 30)
    driver = drive(make_engine())
    made, tokens = driver.open(prompt(30), sampling=sampling), []
    while len(tokens) < 30:
        tokens += driver.answer(made, 3)
        made = driver.engine.restore(driver.engine.snapshot(made))
    assert tokens == expected
