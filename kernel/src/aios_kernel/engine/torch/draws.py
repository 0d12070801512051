"""Random draws that depend on a seed and a counter only, and what they pick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GROUP = 64
"""Weights that are summed first, so that the cumulative sums run over a 64th of the vocabulary."""


def uniform(seeds: Sequence[int], counters: Sequence[int]) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for each seed and counter (SplitMix64, Steele et al. 2014, applied to both in turn)."""
    state = np.array([seed & (1 << 64) - 1 for seed in seeds], dtype=np.uint64)
    mixed = _mix(_mix(state) + np.array(counters, dtype=np.uint64))
    return (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def pick(weights: Tensor, draws: Tensor) -> Tensor:
    """The index where the cumulative weights pass the draw times their sum; its weight is never zero.

    Args:
        weights: not negative, at least one of each row positive, [rows, vocab].
        draws: in [0, 1), float64, [rows].

    Returns:
        Indices, [rows]; of weights that are no numbers any index.
    """
    vocab = weights.shape[1]
    short = -weights.shape[1] % _GROUP
    if short:
        weights = torch.nn.functional.pad(weights, (0, short))
    grouped = weights.view(weights.shape[0], -1, _GROUP)
    group, rest = _invert(grouped.sum(dim=-1).double(), draws)
    member, _ = _invert(grouped[torch.arange(len(group), device=group.device), group].double(), rest)
    return (group * _GROUP + member).clamp_(max=vocab - 1)


def _invert(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The index that each draw falls on, and how far into its weight, in [0, 1)."""
    cumulative = weights.cumsum(dim=-1)
    target = draws[:, None] * cumulative[:, -1:]
    last = weights.shape[-1] - 1 - (weights.flip(-1) > 0).int().argmax(dim=-1, keepdim=True)
    index = torch.minimum(torch.searchsorted(cumulative, target, right=True), last)
    weight = weights.gather(1, index)
    into = (target - (cumulative.gather(1, index) - weight)) / weight
    return index[:, 0], into[:, 0].clamp(0.0, 1.0 - 2.0**-53)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + _word(0x9E3779B97F4A7C15)
    state = (state ^ (state >> _word(30))) * _word(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> _word(27))) * _word(0x94D049BB133111EB)
    return state ^ (state >> _word(31))


def _word(value: int) -> Any:
    return np.uint64(value)
