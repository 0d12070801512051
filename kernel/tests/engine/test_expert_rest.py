"""When the experts' predictor rests, and that resting changes no result."""

from __future__ import annotations

from typing import Any

import pytest

from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch import TorchEngine
from aios_kernel.engine.torch.experts import rest as module
from aios_kernel.engine.torch.experts.loading import mixture_of
from aios_kernel.engine.torch.experts.rest import Rest

LAYERS, COST = 8, 1e-4


def run(rest: Rest, passes: int, waited: float) -> int:
    """In how many passes it worked, if every layer waits for so many times what predicting costs."""
    worked = 0
    for _ in range(passes):
        rest.begin_pass()
        worked += rest.working
        for _ in range(LAYERS):
            rest.end_layer(COST, waited * COST)
    return worked


def test_it_rests_while_nothing_is_missed_but_for_a_look_now_and_then() -> None:
    rest = Rest()
    run(rest, 20, waited=0.0)
    assert run(rest, 160, waited=0.0) == 10


def test_it_works_while_layers_wait() -> None:
    assert run(Rest(), 200, waited=4.0) == 200


def test_it_wakes_when_misses_come_back_and_rests_when_they_have_gone() -> None:
    rest = Rest()
    run(rest, 50, waited=0.0)
    assert run(rest, 20, waited=10.0) > 10
    run(rest, 40, waited=0.0)
    assert run(rest, 32, waited=0.0) == 2


def test_between_the_two_limits_it_goes_on_as_before() -> None:
    works, rests = Rest(), Rest()
    run(works, 50, waited=4.0)
    run(rests, 50, waited=0.0)
    assert run(works, 160, waited=2.0) == 160
    assert run(rests, 160, waited=2.0) == 10


def test_a_prompt_that_waits_for_everything_is_soon_forgotten() -> None:
    rest = Rest()
    run(rest, 50, waited=0.0)
    run(rest, 1, waited=1e6)
    run(rest, 40, waited=0.0)
    assert run(rest, 32, waited=0.0) == 2


@pytest.mark.parametrize("cache", [0.1, 0.5, 1.0])
def test_resting_says_the_same(
    monkeypatch: pytest.MonkeyPatch, load_cached: Any, oracles: Any, prompt: Any, cache: float
) -> None:
    monkeypatch.setattr(module, "_SLEEPS", float("inf"))
    monkeypatch.setattr(module, "_WAKES", float("inf"))
    monkeypatch.setattr(module, "_SETTLES", 12)
    model = load_cached("qwen3_moe_cached", cache)
    history, predicted = mixture_of(model).history, list[int]()
    monkeypatch.setattr(history, "_likelihoods", _noting(history._likelihoods, predicted))
    engine = TorchEngine(model, kv_tokens=512)
    context = engine.open(prompt(30), sampling=SamplingParams())
    while len(context.tokens) < 70:
        (output,) = engine.step([(context, 30)])
        assert output.error is None
    oracles("qwen3_moe_cached").check(prompt(30), context.tokens[30:])
    assert len(predicted) <= (4 + 40 // 16 + 1) * 3  # passes that worked, of three layers


def _noting(function: Any, calls: list[int]) -> Any:
    def noting(layer: int, sample: Any) -> Any:
        calls.append(layer)
        return function(layer, sample)

    return noting
