"""Log-probabilities as the model itself sees them: before penalties, grammar and temperature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aios_kernel.engine.protocol import TokenScore


def log_probabilities(logits: Tensor) -> Tensor:
    """Natural logarithms of the probabilities, [rows, vocab]."""
    return torch.log_softmax(logits, dim=-1)


def scores(logprobs: Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenScore]:
    """The score of one token a row, and the likeliest tokens there.

    Args:
        logprobs: [rows, vocab].
        tokens: one a row.
        tops: how many of the likeliest tokens to tell, one a row.
    """
    index = torch.tensor(tokens, device=logprobs.device)[:, None]
    own: list[float] = logprobs.gather(1, index)[:, 0].tolist()
    most = min(max(tops), logprobs.shape[1])
    if most == 0:
        return [TokenScore(token, value) for token, value in zip(tokens, own, strict=True)]
    best = logprobs.topk(most, dim=-1)
    values, places = best.values.tolist(), best.indices.tolist()
    return [
        TokenScore(token, own[row], list(zip(places[row][:top], values[row][:top], strict=True)))
        for row, (token, top) in enumerate(zip(tokens, tops, strict=True))
    ]
