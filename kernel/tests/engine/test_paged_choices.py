"""Choices that are worked out in one go against the sampler of the CPU."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.masks import Masks, bar_by_bits
from aios_kernel.engine.torch.paged import choices
from aios_kernel.engine.torch.sampler import Choice, choose

VOCAB = 300


class Even:
    """A grammar of even tokens; with `nothing` it allows none, `broken` it fails."""

    def __init__(self, kind: str = "") -> None:
        self.kind = kind
        self.taken: list[int] = []

    def fill_mask(self, mask: Any, row: int) -> None:
        if self.kind == "broken":
            raise RuntimeError("it is broken")
        mask[row] = 0 if self.kind == "nothing" else 0x55555555

    def accept(self, token: int) -> None:
        if self.kind == "broken":
            raise RuntimeError("it is broken")
        if token % 2 or self.kind:
            raise ValueError(token)
        self.taken.append(token)

    accept_later = accept

    def fork(self) -> Even:
        return copy.deepcopy(self)


def contexts(seed: int) -> list[TorchContext]:
    """A batch of everything that may be asked for."""
    chooser = random.Random(seed)
    made: list[TorchContext] = []
    for number in range(14):
        sampling = SamplingParams(
            temperature=chooser.choice([0.0, 0.0, 0.8, 1.5]),
            top_k=chooser.choice([0, 5]),
            top_p=chooser.choice([1.0, 0.8]),
            min_p=chooser.choice([0.0, 0.1]),
            presence_penalty=chooser.choice([0.0, 0.5]),
            repetition_penalty=chooser.choice([1.0, 1.3]),
            logit_bias=chooser.choice([(), ((7, 4.0), (8, -2.0))]),
            seed=chooser.randrange(1000),
            top_logprobs=chooser.choice([None, None, 0, 3]),
            margin=chooser.random() < 0.3,
            forced=chooser.choice([(), (), (4, 6, 8)]),
        )
        grammar: Any = Even(chooser.choice(["", "", "nothing", "broken"])) if chooser.random() < 0.4 else None
        context = TorchContext(
            [chooser.randrange(VOCAB) for _ in range(9)], sampling=sampling, root=b"", grammar=grammar
        )
        context.prompt, context.emitted = 5, number % 3
        made.append(context)
    return made


def told(choice: Choice) -> Any:
    if choice.error is not None:
        return choice.error, choice.finite
    rounded = [round(x, 4) for x in (choice.margin or 0.0, choice.logprob or 0.0, *(value for _, value in choice.top))]
    return choice.token, choice.argmax, choice.margin is None, [token for token, _ in choice.top], rounded


@pytest.mark.parametrize("seed", range(30))
def test_they_are_the_samplers_own(seed: int) -> None:
    torch.manual_seed(seed)
    batch, twins = contexts(seed), contexts(seed)
    logits = torch.randn(len(batch), VOCAB) * 3
    logits[seed % 14, 5] = float("nan")
    expected = choose(logits.clone(), batch)
    found = choices.finish(choices.begin(logits.clone(), twins, Masks()))
    assert [told(choice) for choice in found] == [told(choice) for choice in expected]
    assert [context.emitted for context in twins] == [context.emitted for context in batch]
    for twin, context in zip(twins, batch, strict=True):
        assert getattr(twin.grammar, "taken", None) == getattr(context.grammar, "taken", None)


def test_first_choices_alone_are_two_numbers_each() -> None:
    logits = torch.randn(3, VOCAB)
    logits[1, 0] = float("inf")
    plain = [TorchContext([1], sampling=SamplingParams(), root=b"") for _ in range(3)]
    choosing = choices.begin(logits, plain, Masks())
    assert choosing.told.shape == (3, 2)
    assert [choice.error is None for choice in choices.finish(choosing)] == [True, False, True]


def test_only_who_is_still_concerned_is_counted() -> None:
    plain = [TorchContext([1], sampling=SamplingParams(), root=b"") for _ in range(3)]
    choices.finish(choices.begin(torch.randn(3, VOCAB), plain, Masks()), {id(plain[1])})
    assert [context.emitted for context in plain] == [0, 1, 0]


def test_bits_bar_on_any_device() -> None:
    bits = torch.tensor([[0x55555555] * 10, [-1] * 10], dtype=torch.int32)
    logits = torch.zeros(2, VOCAB)
    bar_by_bits(logits, bits)
    assert torch.isneginf(logits[0]).tolist() == [token % 2 == 1 for token in range(VOCAB)]
    assert not logits[1].any()
