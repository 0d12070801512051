"""Penalties for tokens that were said already, and biases of single tokens.

Nothing is kept between two steps: what was said is read from the context's tokens, so that it is right after a fork, a
snapshot or an append. Only the logits of these tokens are touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.transfer import on


def penalise(logits: Tensor, contexts: Sequence[TorchContext]) -> None:
    """Apply the repetition, presence and frequency penalties in place.

    Args:
        logits: float32, [contexts, vocab].
        contexts: one a row; those without penalties cost nothing.
    """
    repeated = [row for row, context in enumerate(contexts) if context.sampling.repetition_penalty != 1.0]
    if repeated:
        _divide(logits, contexts, repeated)
    counted = [row for row, c in enumerate(contexts) if c.sampling.presence_penalty or c.sampling.frequency_penalty]
    if counted:
        _subtract(logits, contexts, counted)


def add_biases(logits: Tensor, contexts: Sequence[TorchContext]) -> None:
    """Add the biases in place."""
    places: list[int] = []
    values: list[float] = []
    for row, context in enumerate(contexts):
        for token, bias in context.sampling.logit_bias:
            places.append(row * logits.shape[1] + token)
            values.append(bias)
    if places:
        logits.view(-1)[on(logits.device, places)] += on(logits.device, values, np.float32)


def _divide(logits: Tensor, contexts: Sequence[TorchContext], rows: Sequence[int]) -> None:
    """Divide the logits of all tokens of the sequence, or multiply negative ones."""
    places, _ = _said(logits.shape[1], rows, [contexts[row].tokens for row in rows])
    penalties = np.array([context.sampling.repetition_penalty for context in contexts], dtype=np.float32)
    index, penalty = _on(logits, places, penalties[places // logits.shape[1]])
    found = logits.view(-1)[index]
    logits.view(-1)[index] = torch.where(found < 0, found * penalty, found / penalty)


def _subtract(logits: Tensor, contexts: Sequence[TorchContext], rows: Sequence[int]) -> None:
    """Take presence and frequency penalties off the logits of the tokens behind the prompt."""
    places, counts = _said(logits.shape[1], rows, [contexts[row].tokens[contexts[row].prompt :] for row in rows])
    presence = np.array([context.sampling.presence_penalty for context in contexts], dtype=np.float32)
    frequency = np.array([context.sampling.frequency_penalty for context in contexts], dtype=np.float32)
    of_row = places // logits.shape[1]
    index, penalty = _on(logits, places, presence[of_row] + counts * frequency[of_row])
    logits.view(-1)[index] -= penalty


def _said(
    vocab: int, rows: Sequence[int], spoken: Sequence[Sequence[int]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the tokens in the flattened logits, each once, and how often each was said."""
    lengths = [len(tokens) for tokens in spoken]
    tokens = np.fromiter(itertools.chain.from_iterable(spoken), dtype=np.int64, count=sum(lengths))
    return np.unique(tokens + np.repeat(np.array(rows, dtype=np.int64) * vocab, lengths), return_counts=True)


def _on(logits: Tensor, places: NDArray[np.int64], values: NDArray[np.floating[Any]]) -> tuple[Tensor, Tensor]:
    """Both on the logits' device."""
    return on(logits.device, places), on(logits.device, values, np.float32)
