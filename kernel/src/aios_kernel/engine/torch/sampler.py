"""From logits to tokens, for all contexts of a step at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor

from aios_kernel.engine.torch.constraints import accept_first_choices, advance, allowed, mask
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.draws import pick, uniform
from aios_kernel.engine.torch.masks import Masks
from aios_kernel.engine.torch.native import choice as choosing
from aios_kernel.engine.torch.penalties import add_biases, penalise
from aios_kernel.engine.torch.scores import log_probabilities, scores
from aios_kernel.engine.torch.transfer import on
from aios_kernel.engine.torch.truncation import truncate

_COLDEST = 1e-5
"""Below this a temperature would overflow; it is greedy decoding in all but name."""
NOT_FINITE = "the model's logits are not finite"
BARRED = "the grammar allows no token here: no answer satisfies the schema, expression or choice"


class Choice(msgspec.Struct, gc=False):
    """The next token of one context, or why there is none."""

    token: int = 0
    argmax: int = 0
    margin: float | None = None
    logprob: float | None = None
    top: list[tuple[int, float]] = []
    error: str | None = None
    finite: bool = True
    accepted: bool = False
    """The context's grammar was advanced by the token."""


def choose(logits: Tensor, contexts: Sequence[TorchContext], masks: Masks | None = None) -> list[Choice]:
    """Choose the next token of each context, advance its grammar and its random counter.

    The random number of a token depends on the context's seed and on how many tokens it has emitted, on nothing else:
    a context samples the same whatever else is in the batch, and after a snapshot.

    Args:
        logits: as the model gives them, [contexts, vocab]; float32 ones are changed in place.
        contexts: one a row; those that decode greedily, without a grammar and reports, cost nothing more.
        masks: what their grammars allow, as far as it is known already.
    """
    masks = masks or Masks()
    known = masks.known(contexts) if choosing.served(logits) else None
    choices = _first_choices(logits) if known is None else _allowed_choices(logits, contexts, *known)
    asking = [row for row, context in enumerate(contexts) if not context.plain]
    if asking and (asking := [row for row in asking if choices[row].error is None and not choices[row].accepted]):
        some = logits if len(asking) == len(contexts) else logits[asking]
        _choose_freely(some, [contexts[row] for row in asking], [choices[row] for row in asking], masks)
    for context, choice in zip(contexts, choices, strict=True):
        if choice.error is None:
            context.emitted += 1
    return choices


def first_tokens(logits: Tensor) -> list[int] | None:
    """The first choices of contexts that ask for nothing else (`TorchContext.plain`); None if a row is not finite."""
    tokens, finite = _best(logits)
    return tokens if all(finite) else None


def _first_choices(logits: Tensor) -> list[Choice]:
    tokens, finite = _best(logits)
    if all(finite):
        return [Choice(token, token) for token in tokens]
    return [
        Choice(token, token) if fine else Choice(error=NOT_FINITE, finite=False)
        for token, fine in zip(tokens, finite, strict=True)
    ]


def _allowed_choices(
    logits: Tensor, contexts: Sequence[TorchContext], bits: Tensor, places: Sequence[int]
) -> list[Choice]:
    """First choices among what the masks that are known allow, each row's in one look; their grammars advance."""
    tokens, values = choosing.best_of_each(logits, bits, places)
    choices = [Choice(token, token) for token in tokens]
    for choice, context, place, value in zip(choices, contexts, places, values, strict=True):
        if not math.isfinite(value):
            choice.finite = place >= 0 and value == -math.inf
            choice.error = BARRED if choice.finite else NOT_FINITE
        elif place >= 0 and context.grammar is not None:
            context.grammar.accept_later(choice.token)
            choice.accepted = True
    return choices


def _best(logits: Tensor) -> tuple[list[int], list[bool]]:
    """The largest logit of each row and whether it is finite; NaN counts as the largest."""
    if choosing.served(logits):
        return choosing.best(logits)
    if logits.device.type == "cpu":
        # On the CPU numpy finds it in a tenth of torch's time.
        array = logits.float().numpy()
        index = array.argmax(axis=1)
        return index.tolist(), np.isfinite(array[np.arange(len(index)), index]).tolist()
    best = logits.max(dim=-1)
    return best.indices.tolist(), torch.isfinite(best.values).tolist()


def _choose_freely(logits: Tensor, contexts: Sequence[TorchContext], choices: Sequence[Choice], masks: Masks) -> None:
    """Choose where more is asked for than the model's first choice."""
    greedy = all(context.greedy for context in contexts)
    logits = logits if greedy else logits.float()
    reporting = [row for row, c in enumerate(contexts) if not c.greedy and c.sampling.top_logprobs is not None]
    logprobs = log_probabilities(logits[reporting]) if reporting else None
    if not greedy and any(context.sampling.penalised or context.sampling.logit_bias for context in contexts):
        penalise(logits, contexts)
        add_biases(logits, contexts)
        _take(choices, *_best(logits), NOT_FINITE)
    masked = accept_first_choices(contexts, choices, masks)
    if masked:
        _constrain(logits, masked, contexts, choices, masks)
    if not greedy:
        _tell_margins(logits, contexts, choices)
        _sample(logits, contexts, choices)
        _force(contexts, choices)
    advance(contexts, choices)
    if logprobs is not None:
        _report(logprobs, [contexts[row] for row in reporting], [choices[row] for row in reporting])


def _constrain(
    logits: Tensor, rows: Sequence[int], contexts: Sequence[TorchContext], choices: Sequence[Choice], masks: Masks
) -> None:
    """Choose among what the grammars of these rows allow."""
    held, picks = [contexts[row] for row in rows], [choices[row] for row in rows]
    if choosing.served(logits) and not any(not c.greedy and c.sampled_by_grammar for c in held):
        # Nobody reads these logits again: it is enough to look for the best that is allowed.
        _take(picks, *choosing.best(logits, rows, allowed(logits, held, picks, masks)), BARRED)
        return
    whole = len(rows) == len(contexts)
    some = logits if whole else logits[rows]
    mask(some, held, picks, masks)
    if not whole:
        logits[rows] = some
    _take(picks, *_best(some), BARRED)


def _take(choices: Sequence[Choice], tokens: Sequence[int], finite: Sequence[bool], otherwise: str) -> None:
    """Let other tokens be chosen; those that are none fail, with what went wrong before if something did."""
    for choice, token, fine in zip(choices, tokens, finite, strict=True):
        choice.token = choice.argmax = token
        if not fine:
            choice.error = choice.error or otherwise


def _tell_margins(logits: Tensor, contexts: Sequence[TorchContext], choices: Sequence[Choice]) -> None:
    """How far the second best logits are behind, where that is asked for."""
    rows = [row for row, context in enumerate(contexts) if context.sampling.margin or context.sampling.forced]
    if rows:
        best = logits[rows].topk(2, dim=-1).values
        for row, margin in zip(rows, (best[:, 0] - best[:, 1]).tolist(), strict=True):
            choices[row].margin = margin


def _sample(logits: Tensor, contexts: Sequence[TorchContext], choices: Sequence[Choice]) -> None:
    rows = [row for row, context in enumerate(contexts) if context.sampling.temperature and not choices[row].error]
    if not rows:
        return
    some = logits if len(rows) == len(contexts) else logits[rows]
    tokens: list[int] = sampled(some, [contexts[row] for row in rows]).tolist()
    for row, token in zip(rows, tokens, strict=True):
        choices[row].token = token


def sampled(logits: Tensor, contexts: Sequence[TorchContext]) -> Tensor:
    """Draw a token for each row by its context's temperature, seed and counter; [rows]. Changes the logits."""
    params = [context.sampling for context in contexts]
    device = logits.device
    temperatures = on(device, [max(p.temperature, _COLDEST) for p in params], np.float32)
    weights = torch.softmax(logits.div_(temperatures[:, None]), dim=-1)
    cut = [row for row, p in enumerate(params) if p.top_k > 0 or p.top_p < 1.0 or p.min_p > 0.0]
    if len(cut) == len(params):
        weights = truncate(weights, params)
    elif cut:
        index = on(device, cut)
        weights[index] = truncate(weights[index], [params[row] for row in cut])
    draws = uniform([p.seed for p in params], [context.emitted for context in contexts])
    return pick(weights, on(device, draws))


def _force(contexts: Sequence[TorchContext], choices: Sequence[Choice]) -> None:
    for context, choice in zip(contexts, choices, strict=True):
        if context.emitted < len(context.sampling.forced):
            choice.token = context.sampling.forced[context.emitted]


def _report(logprobs: Tensor, contexts: Sequence[TorchContext], choices: Sequence[Choice]) -> None:
    told = scores(
        logprobs, [choice.token for choice in choices], [context.sampling.top_logprobs or 0 for context in contexts]
    )
    for choice, score in zip(choices, told, strict=True):
        choice.logprob, choice.top = score.logprob, score.top
