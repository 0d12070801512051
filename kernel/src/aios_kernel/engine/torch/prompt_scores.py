"""Log-probabilities of a prompt's own tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from aios_kernel.engine.torch.batch import Work
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.scores import log_probabilities, scores

_ROWS = 256
"""Tokens of such a prompt in one step: each takes a row of logits as wide as the vocabulary."""


def most_at_once(context: TorchContext) -> int:
    """How many tokens of a context one step may compute."""
    return _ROWS if context.wants_prompt else len(context.tokens)


def score_prompts(logits: Tensor, works: Sequence[Work]) -> None:
    """Leave the scores of their prompts' tokens with the works.

    Args:
        logits: as the model gives them, [rows, vocab]; `Work.scored` rows of each work, in order.
        works: what was computed; their contexts do not count it as such yet.
    """
    logprobs = log_probabilities(logits.float())
    tokens: list[int] = []
    tops: list[int] = []
    for work in works:
        following = work.context.computed + 1
        tokens += work.context.tokens[following : following + work.scored]
        tops += [work.context.sampling.prompt_logprobs or 0] * work.scored
    told = scores(logprobs, tokens, tops)
    for work in works:
        work.scores, told = told[: work.scored], told[work.scored :]
