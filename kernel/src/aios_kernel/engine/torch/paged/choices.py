"""The choices of a step worked out on the device, told to the host in one copy.

`sampler.choose` asks the device several times in a row, and each time the device has nothing to do until the host has
answered. Here all that may be asked for is put into its queue at once; the host looks when it is ready. What is chosen
is the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aios_kernel.engine.torch.constraints import advance
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.masks import Masks
from aios_kernel.engine.torch.penalties import add_biases, penalise
from aios_kernel.engine.torch.sampler import BARRED, NOT_FINITE, Choice, sampled
from aios_kernel.engine.torch.scores import log_probabilities
from aios_kernel.engine.torch.transfer import on

_FIRST, _FINITE, _TOKEN, _ARGMAX, _FINE, _MARGIN, _LOGPROB, _TOP = range(8)
"""Columns of what is told: the model's first choice and whether it is a number; the token; the best one of what
remains, and whether anything does; the distance of the second best; the token's log-probability; then the likeliest
tokens, and behind them their log-probabilities."""


class Choosing(NamedTuple):
    """Choices under way."""

    contexts: Sequence[TorchContext]
    tokens: Tensor
    """What each row emits, on the device."""
    told: Tensor
    """On the host, float64: it holds every token exactly, [contexts, columns]."""
    ready: Any
    """An event, or None: it is there."""
    errors: dict[int, str]
    most: int
    """Alternatives that are reported of each row."""


def begin(logits: Tensor, contexts: Sequence[TorchContext], masks: Masks) -> Choosing:
    """Start to choose the next token of each context.

    Args:
        logits: float32, [contexts, vocab]; changed in place.
        contexts: one a row; their grammars must not be touched until `finish`.
        masks: what was worked out beside the forward.
    """
    first = logits.max(dim=-1)
    columns = [first.indices.double(), torch.isfinite(first.values).double()]
    errors: dict[int, str] = {}
    tokens, most = first.indices, 0
    if any(context.grammar is not None or not context.sampling.plain for context in contexts):
        tokens, more, errors, most = _freely(logits, contexts, masks)
        columns += [tokens.double(), *more]
    told = torch.stack(columns, dim=1)
    if told.device.type != "cuda":
        return Choosing(contexts, tokens, told, None, errors, most)
    host = torch.empty(told.shape, dtype=told.dtype, pin_memory=True)
    host.copy_(told, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return Choosing(contexts, tokens, host, ready, errors, most)


def finish(choosing: Choosing, among: Collection[int] | None = None) -> list[Choice]:
    """The choices; grammars and counters of random numbers are advanced. Waits for the device.

    `among` are the ids of the contexts that are still concerned; None: all.
    """
    if choosing.ready is not None:
        choosing.ready.synchronize()
    contexts = choosing.contexts
    rows: list[list[float]] = choosing.told.tolist()
    if choosing.told.shape[1] <= _TOKEN:
        choices = [_first_choice(row) for row in rows]
    else:
        choices = [
            _choice(row, context, choosing.errors.get(place), choosing.most)
            for place, (row, context) in enumerate(zip(rows, contexts, strict=True))
        ]
        advance(contexts, choices)
    for context, choice in zip(contexts, choices, strict=True):
        if choice.error is None and (among is None or id(context) in among):
            context.emitted += 1
    return choices


def _freely(
    logits: Tensor, contexts: Sequence[TorchContext], masks: Masks
) -> tuple[Tensor, list[Tensor], dict[int, str], int]:
    """The tokens, the other columns, what is wrong with rows' grammars, and how many alternatives are told."""
    reporting = [context.sampling.top_logprobs for context in contexts]
    logprobs = log_probabilities(logits) if any(n is not None for n in reporting) else None
    if any(context.sampling.penalised or context.sampling.logit_bias for context in contexts):
        penalise(logits, contexts)
        add_biases(logits, contexts)
    errors = _constrain(logits, contexts, masks)
    best = logits.topk(2, dim=-1)
    token = argmax = best.indices[:, 0]
    drawn = [row for row, context in enumerate(contexts) if context.sampling.temperature]
    if drawn:
        index = on(logits.device, drawn)
        tokens = sampled(logits[index], [contexts[row] for row in drawn])
        token = token.index_copy(0, index, tokens)
    forced = [
        (row, context.sampling.forced[context.emitted]) for row, context in enumerate(contexts) if _forces(context)
    ]
    if forced:
        token = token.index_copy(
            0, on(logits.device, [row for row, _ in forced]), on(logits.device, [value for _, value in forced])
        )
    columns = [
        argmax.double(), torch.isfinite(best.values[:, 0]).double(),
        (best.values[:, 0] - best.values[:, 1]).double(),
    ]  # fmt: skip
    if logprobs is None:
        return token, columns, errors, 0
    most = min(max(n or 0 for n in reporting), logprobs.shape[1])
    columns.append(logprobs.gather(1, token[:, None])[:, 0].double())
    if most:
        likeliest = logprobs.topk(most, dim=-1)
        columns += [*likeliest.indices.double().T, *likeliest.values.double().T]
    return token, columns, errors, most


def _constrain(logits: Tensor, contexts: Sequence[TorchContext], masks: Masks) -> dict[int, str]:
    """Bar what the grammars do not allow; give why a mask could not be made, by row."""
    rows = [row for row, context in enumerate(contexts) if context.grammar is not None]
    if not rows:
        return {}
    whole = len(rows) == len(contexts)
    index = on(logits.device, rows)
    some = logits if whole else logits[index]
    told = masks.apply(some, [contexts[row] for row in rows])
    if not whole:
        logits.index_copy_(0, index, some)
    return {row: f"the grammar failed: {why}" for row, why in zip(rows, told, strict=True) if why is not None}


def _forces(context: TorchContext) -> bool:
    return context.emitted < len(context.sampling.forced)


def _first_choice(row: Sequence[float]) -> Choice:
    if not row[_FINITE]:
        return Choice(error=NOT_FINITE, finite=False)
    return Choice(int(row[_FIRST]), int(row[_FIRST]))


def _choice(row: Sequence[float], context: TorchContext, error: str | None, most: int) -> Choice:
    if not row[_FINITE]:
        return Choice(error=NOT_FINITE, finite=False)
    choice = Choice(int(row[_TOKEN]), int(row[_ARGMAX]), error=error)
    sampling = context.sampling
    if not row[_FINE] and error is None:
        choice.error = BARRED if context.grammar is not None else NOT_FINITE
    if sampling.margin or sampling.forced:
        choice.margin = row[_MARGIN]
    if sampling.top_logprobs is not None:
        choice.logprob = row[_LOGPROB]
        tokens, values = row[_TOP : _TOP + most], row[_TOP + most : _TOP + 2 * most]
        pairs = [(int(token), value) for token, value in zip(tokens, values, strict=True)]
        choice.top = pairs[: sampling.top_logprobs]
    return choice
