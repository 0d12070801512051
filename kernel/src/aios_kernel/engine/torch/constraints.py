"""Grammars over the logits of a step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aios_kernel.engine.protocol import Grammar
from aios_kernel.engine.torch.context import TorchContext


class Pick(Protocol):
    """What a constraint reads and writes of a context's choice."""

    token: int
    error: str | None
    accepted: bool
    """The grammar was advanced by the token."""


def accept_first_choices(contexts: Sequence[TorchContext], picks: Sequence[Pick]) -> list[int]:
    """Advance the grammars that allow what the model would say anyway; give the rows that need a mask.

    A grammar takes a token in a tenth of the time that the set of all allowed tokens takes. Only the first choice of
    greedy decoding can be taken so; a sampled token depends on what else is allowed.
    """
    rows: list[int] = []
    for row, (context, pick) in enumerate(zip(contexts, picks, strict=True)):
        sampling = context.sampling
        if context.grammar is None:
            continue
        if sampling.temperature or sampling.forced or sampling.margin or not _accepts(context.grammar, pick):
            rows.append(row)
    return rows


def mask(logits: Tensor, contexts: Sequence[TorchContext], picks: Sequence[Pick]) -> None:
    """Set the logits that the grammars do not allow to minus infinity, in place.

    Args:
        logits: float32 and finite, [contexts, vocab].
        contexts: one a row, each with a grammar.
        picks: one a row.
    """
    bits = torch.full((logits.shape[0], -(-logits.shape[1] // 32)), -1, dtype=torch.int32)
    for row, (context, pick) in enumerate(zip(contexts, picks, strict=True)):
        _fill(context.grammar, bits, row, pick)
    if logits.device.type == "cpu":
        # A table look-up for eight tokens at once; xgrammar's own loop takes up to forty times as long.
        barred = np.take(_barred(), bits.numpy().view(np.uint8), axis=0).reshape(len(bits), -1)
        logits.add_(torch.from_numpy(barred)[:, : logits.shape[1]])
        return
    import xgrammar

    xgrammar.apply_token_bitmask_inplace(logits, bits.to(logits.device), vocab_size=logits.shape[1])


@functools.cache
def _barred() -> NDArray[np.float32]:
    """What a byte of the mask adds to the logits of its eight tokens, float32, [256, 8]."""
    allowed = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(allowed == 1, np.float32(0.0), np.float32("-inf"))


def advance(contexts: Sequence[TorchContext], picks: Sequence[Pick]) -> None:
    """Advance the grammars by the chosen tokens, where that has not been done."""
    for context, pick in zip(contexts, picks, strict=True):
        if context.grammar is None or pick.accepted or pick.error is not None:
            continue
        try:
            context.grammar.accept(pick.token)
        except Exception as error:  # noqa: BLE001 - one context's grammar must not end the others' step
            pick.error = f"the grammar refused token {pick.token}: {error}"


def _accepts(grammar: Grammar, pick: Pick) -> bool:
    """Whether the row is done with: its grammar took the token, or failed."""
    try:
        grammar.accept(pick.token)
    except ValueError:
        return False
    except Exception as error:  # noqa: BLE001 - one context's grammar must not end the others' step
        pick.error = f"the grammar failed: {error}"
        return True
    pick.accepted = True
    return True


def _fill(grammar: Grammar | None, bits: Any, row: int, pick: Pick) -> None:
    if grammar is None:
        return
    try:
        grammar.fill_mask(bits, row)
    except Exception as error:  # noqa: BLE001 - one context's grammar must not end the others' step
        pick.error = f"the grammar failed: {error}"
