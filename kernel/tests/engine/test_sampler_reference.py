"""The sampler against the logits processors of transformers, one row at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.draws import pick, uniform
from aios_kernel.engine.torch.sampler import choose

VOCAB = 300
PROPERTY = settings(max_examples=60, deadline=None)

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.2, 0.7, 1.0, 1.8]),
    top_k=st.sampled_from([0, 0, 1, 3, 50, 299, 1000]),
    top_p=st.sampled_from([1.0, 1.0, 0.95, 0.5, 0.1]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.5, -0.7]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.8]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, -2.0, 3.0, 100.0]), max_size=4).map(
        lambda biases: tuple(biases.items())
    ),
    seed=st.integers(-(2**63), 2**63 - 1),
    top_logprobs=st.sampled_from([None, None, 0, 3]),
)
ROWS = st.lists(st.tuples(PARAMS, st.integers(0, 2**31), st.integers(0, 12)), min_size=1, max_size=6)


def make_context(params: SamplingParams, seed: int, n_emitted: int) -> TorchContext:
    """A context with some repetition in prompt and answer."""
    tokens = np.random.default_rng(seed).integers(0, 40, 10 + n_emitted).tolist()
    context = TorchContext(tokens[:10], sampling=params, root=b"")
    context.tokens += tokens[10:]
    context.emitted = n_emitted
    return context


def make_logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, VOCAB, generator=generator) * 3


def expected(logits: torch.Tensor, context: TorchContext) -> torch.Tensor:
    """The distribution as transformers' classes give it; penalties that these lack spelled out."""
    params, answer = context.sampling, context.tokens[context.prompt :]
    ids, scores = torch.tensor([context.tokens]), logits.clone()
    if params.repetition_penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    for token in set(answer):
        scores[0, token] -= params.presence_penalty + params.frequency_penalty * answer.count(token)
    for token, bias in params.logit_bias:
        scores[0, token] += bias
    if not params.temperature:
        return torch.nn.functional.one_hot(scores[0].argmax(), VOCAB).double()
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    return torch.softmax(warpers(ids, scores)[0].double(), dim=-1)


@PROPERTY
@given(ROWS)
def test_draws_fall_where_transformers_puts_them(rows: list[tuple[SamplingParams, int, int]]) -> None:
    contexts = [make_context(*row) for row in rows]
    logits = torch.cat([make_logits(seed) for _, seed, _ in rows])
    for context, row, choice in zip(contexts, logits, choose(logits.clone(), contexts), strict=True):
        distribution = expected(row[None], context)
        above = float(distribution[: choice.token + 1].sum())
        below = above - float(distribution[choice.token])
        (draw,) = uniform([context.sampling.seed], [context.emitted - 1])
        assert distribution[choice.token] > 0
        assert below - 1e-5 <= draw <= above + 1e-5 or not context.sampling.temperature


@PROPERTY
@given(ROWS)
def test_company_changes_nothing(rows: list[tuple[SamplingParams, int, int]]) -> None:
    logits = torch.cat([make_logits(seed) for _, seed, _ in rows])
    together = choose(logits.clone(), [make_context(*row) for row in rows])
    for number, row in enumerate(rows):
        (alone,) = choose(logits[number : number + 1].clone(), [make_context(*row)])
        assert (alone.token, alone.argmax) == (together[number].token, together[number].argmax)
        assert alone.top == together[number].top


@PROPERTY
@given(st.integers(1, 200), st.integers(0, 2**31), st.sampled_from([0.0, 0.9]))
def test_picking_never_gives_what_has_no_weight(width: int, seed: int, zeros: float) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.random((50, width)) * (generator.random((50, width)) >= zeros)
    weights[:, generator.integers(0, width)] += 0.5
    draws = generator.random(50)
    draws[:2] = 0.0, 1.0 - 2.0**-53
    found = pick(torch.from_numpy(weights), torch.from_numpy(draws)).numpy()
    own = weights[np.arange(50), found]
    above = np.array([row[: index + 1].sum() for row, index in zip(weights, found, strict=True)])
    target = draws * weights.sum(axis=1)
    assert (own > 0).all()
    assert ((above - own <= target + 1e-9) & (target <= above + 1e-9)).all()


def test_the_same_numbers_as_ever() -> None:
    """A changed generator would change every answer with a seed, and every snapshot's continuation."""
    assert uniform([0, 1, -1], [0, 1, 2]).tolist() == [_reference(0, 0), _reference(1, 1), _reference(-1, 2)]


def _reference(seed: int, counter: int) -> float:
    mask = (1 << 64) - 1

    def mix(state: int) -> int:
        state = (state + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        return state ^ (state >> 31)

    return (mix(mix(seed & mask) + counter) >> 11) / (1 << 53)


def test_tiny_temperatures_are_greedy() -> None:
    logits = make_logits(1) * 1000
    params = SamplingParams(temperature=1e-30, top_p=0.9)
    (choice,) = choose(logits.clone(), [make_context(params, 0, 0)])
    assert choice.token == int(logits.argmax())


PENALTIES: list[dict[str, Any]] = [
    {"frequency_penalty": 1.0, "presence_penalty": 0.5},
    {"repetition_penalty": 1.4, "temperature": 0.8, "seed": 4},
    {"logit_bias": ((3, 5.0), (7, -100.0)), "temperature": 1.0, "min_p": 0.02, "seed": 5},
]


@pytest.mark.parametrize("params", PENALTIES)
def test_penalties_survive_snapshots_and_forks(
    make_engine: Any, drive: Any, prompt: Any, params: dict[str, Any]
) -> None:
    sampling = SamplingParams(**params)
    driver = drive(make_engine())
    plain = dataclasses.replace(sampling, frequency_penalty=0.0, presence_penalty=0.0, repetition_penalty=1.0)
    whole = driver.answer(driver.open(prompt(30), sampling=sampling), 24)
    if sampling.penalised:
        assert whole != driver.answer(driver.open(prompt(30), sampling=plain), 24)
    context, tokens = driver.open(prompt(30), sampling=sampling), []
    while len(tokens) < 24:
        tokens += driver.answer(context, 4)
        twin = driver.engine.fork(context)
        driver.engine.release(context)
        context = driver.engine.restore(driver.engine.snapshot(twin))
    assert tokens == whole


@given(PARAMS)
def test_sampling_survives_a_file(params: SamplingParams) -> None:
    assert msgspec.json.decode(msgspec.json.encode(params), type=SamplingParams) == params
