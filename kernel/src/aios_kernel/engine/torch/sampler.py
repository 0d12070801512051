"""From logits to tokens, for all contexts of a step at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch.context import TorchContext

_MASK64 = (1 << 64) - 1
_HEAD = 256
"""Candidates looked at first for top-p; the whole vocabulary is sorted only if they hold too little probability."""


@dataclass(slots=True)
class Choice:
    """The next token of one context, or why there is none."""

    token: int = 0
    argmax: int = 0
    margin: float = 0.0
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    error: str | None = None
    finite: bool = True


def choose(logits: Tensor, contexts: Sequence[TorchContext]) -> list[Choice]:
    """Choose the next token of each context, advance its grammar and its random counter.

    The random number of a token depends on the context's seed and on how many tokens it has emitted, on nothing else:
    a context samples the same whatever else is in the batch, and after a snapshot.

    Args:
        logits: float32, [contexts, vocab]; changed in place.
        contexts: one a row.
    """
    choices = [Choice() for _ in contexts]
    finite = torch.isfinite(logits.amax(dim=-1)).tolist()
    for choice, is_finite in zip(choices, finite, strict=True):
        if not is_finite:
            choice.finite = False
            choice.error = "the model's logits are not finite"
    logprobs = _log_softmax(logits, contexts)
    _apply_grammars(logits, contexts, choices)
    _rank(logits, choices)
    tokens = _sample(logits, contexts, [choice.argmax for choice in choices])
    for row, (context, choice) in enumerate(zip(contexts, choices, strict=True)):
        if choice.error is None:
            forced = context.sampling.forced
            choice.token = forced[context.emitted] if context.emitted < len(forced) else tokens[row]
            _advance(context, choice)
    for row, values in logprobs.items():
        if choices[row].error is None:
            _report_logprobs(choices[row], values, contexts[row].sampling.top_logprobs or 0)
    return choices


def _log_softmax(logits: Tensor, contexts: Sequence[TorchContext]) -> dict[int, Tensor]:
    """The model's own log-probabilities, before grammar and temperature, of the rows that report them."""
    rows = [row for row, context in enumerate(contexts) if context.sampling.top_logprobs is not None]
    if not rows:
        return {}
    return dict(zip(rows, torch.log_softmax(logits[rows], dim=-1), strict=True))


def _apply_grammars(logits: Tensor, contexts: Sequence[TorchContext], choices: Sequence[Choice]) -> None:
    rows = [row for row, context in enumerate(contexts) if context.grammar is not None]
    if not rows:
        return
    mask = torch.full((len(contexts), -(-logits.shape[1] // 32)), -1, dtype=torch.int32)
    for row in rows:
        grammar = contexts[row].grammar
        try:
            if grammar is not None:
                grammar.fill_mask(mask, row)
        except Exception as error:  # noqa: BLE001 - one context's grammar must not end the others' step
            choices[row].error = choices[row].error or f"the grammar failed: {error}"
    index = torch.tensor(rows)
    bits = torch.arange(32, dtype=torch.int32)
    allowed = (mask[index][:, :, None] >> bits & 1).bool().view(len(rows), -1)[:, : logits.shape[1]]
    index, allowed = index.to(logits.device), allowed.to(logits.device)
    logits[index] = logits[index].masked_fill(~allowed, float("-inf"))
    for row, possible in zip(rows, allowed.any(dim=1).tolist(), strict=True):
        if not possible:
            choices[row].error = choices[row].error or "the grammar allows no token"


def _rank(logits: Tensor, choices: Sequence[Choice]) -> None:
    """Note the greedy choices and how far the second best are behind."""
    best, index = logits.max(dim=-1, keepdim=True)
    second = logits.scatter(1, index, float("-inf")).amax(dim=-1)
    margins = (best[:, 0] - second).tolist()
    for choice, token, margin in zip(choices, index[:, 0].tolist(), margins, strict=True):
        choice.argmax, choice.margin = token, margin


def _sample(logits: Tensor, contexts: Sequence[TorchContext], greedy: list[int]) -> list[int]:
    tokens = list(greedy)
    plain: list[int] = []
    cut: list[int] = []
    for row, context in enumerate(contexts):
        params = context.sampling
        if params.temperature > 0:
            (cut if params.top_k > 0 or params.top_p < 1 else plain).append(row)
    for rows, sample in ((plain, _sample_all), (cut, _sample_cut)):
        if rows:
            params = [contexts[row].sampling for row in rows]
            uniform = [_uniform(contexts[row].sampling.seed, contexts[row].emitted) for row in rows]
            temperatures = torch.tensor([p.temperature for p in params], device=logits.device)[:, None]
            draws = torch.tensor(uniform, dtype=torch.float64, device=logits.device)[:, None]
            for row, token in zip(rows, sample(logits[rows] / temperatures, draws, params), strict=True):
                tokens[row] = token
    return tokens


def _sample_all(logits: Tensor, draws: Tensor, _params: Sequence[SamplingParams]) -> list[int]:
    """Invert the cumulative distribution over the whole vocabulary."""
    weights = torch.softmax(logits, dim=-1, dtype=torch.float64)
    return _invert(weights, draws)[:, 0].tolist()


def _sample_cut(logits: Tensor, draws: Tensor, params: Sequence[SamplingParams]) -> list[int]:
    """Sample among the `top_k` best, of these among the fewest whose probability reaches `top_p`."""
    vocab = logits.shape[-1]
    ks = [min(p.top_k, vocab) if p.top_k > 0 else vocab for p in params]
    k = torch.tensor(ks, device=logits.device)[:, None]
    p = torch.tensor([q.top_p for q in params], dtype=torch.float64, device=logits.device)[:, None]
    total = torch.softmax(logits, dim=-1, dtype=torch.float64)
    width = min(vocab, max([_HEAD, *(kk for kk in ks if kk < vocab)]))
    while True:
        weights, order = total.topk(width, dim=-1)
        weights = weights.masked_fill(torch.arange(width, device=logits.device) >= k, 0.0)
        mass = torch.where(k < vocab, weights.sum(dim=-1, keepdim=True), 1.0)
        cumulative = weights.cumsum(dim=-1)
        if width == vocab or bool(((k <= width) | (cumulative[:, -1:] >= p * mass)).all()):
            break
        width = vocab
    # A candidate stays while what is before it has not reached p; the best one always stays.
    kept = weights.masked_fill(cumulative - weights >= p * mass, 0.0)
    kept[:, 0] = weights[:, 0]
    return order.gather(1, _invert(kept, draws))[:, 0].tolist()


def _invert(weights: Tensor, draws: Tensor) -> Tensor:
    """The index at which the cumulative weights pass `draws` times their sum; its weight is never zero."""
    cumulative = weights.cumsum(dim=-1)
    index = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
    last = weights.shape[-1] - 1 - (weights.flip(-1) > 0).int().argmax(dim=-1, keepdim=True)
    return torch.minimum(index, last)


def _advance(context: TorchContext, choice: Choice) -> None:
    if context.grammar is not None:
        try:
            context.grammar.accept(choice.token)
        except Exception as error:  # noqa: BLE001 - one context's grammar must not end the others' step
            choice.error = f"the grammar refused token {choice.token}: {error}"
            return
    context.emitted += 1


def _report_logprobs(choice: Choice, logprobs: Tensor, top: int) -> None:
    choice.logprob = float(logprobs[choice.token])
    if top > 0:
        values, tokens = logprobs.topk(min(top, len(logprobs)))
        choice.top = list(zip(tokens.tolist(), values.tolist(), strict=True))


def _uniform(seed: int, counter: int) -> float:
    """A number in [0, 1) from a seed and a counter (SplitMix64, Steele et al. 2014, applied to both in turn)."""
    return (_mix(_mix(seed & _MASK64) + counter) >> 11) / (1 << 53)


def _mix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    return state ^ (state >> 31)
