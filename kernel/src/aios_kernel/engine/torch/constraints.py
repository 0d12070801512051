"""Grammars over the logits of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from aios_kernel.engine.protocol import Grammar
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.masks import Masks


class Pick(Protocol):
    """What a constraint reads and writes of a context's choice."""

    token: int
    error: str | None
    accepted: bool
    """The grammar was advanced by the token."""


def accept_first_choices(contexts: Sequence[TorchContext], picks: Sequence[Pick], masks: Masks) -> list[int]:
    """Advance the grammars that allow what the model would say anyway; give the rows that need a mask.

    Only the first choice of greedy decoding can be taken so; a sampled token depends on what else is allowed. Where
    the mask is there already, it is looked up; else the grammar is asked, which takes a tenth of the time that the
    set of all allowed tokens does.
    """
    allowed = masks.allow(contexts, [pick.token for pick in picks])
    rows: list[int] = []
    for row, (context, pick, known) in enumerate(zip(contexts, picks, allowed, strict=True)):
        grammar = context.grammar
        if grammar is None:
            continue
        if known is False or (not context.greedy and context.sampled_by_grammar):
            rows.append(row)
        elif known:
            grammar.accept_later(pick.token)
            pick.accepted = True
        elif not _accepts(grammar, pick):
            rows.append(row)
    return rows


def mask(logits: Tensor, contexts: Sequence[TorchContext], picks: Sequence[Pick], masks: Masks) -> None:
    """Set the logits that the grammars do not allow to minus infinity, in place.

    Args:
        logits: float32 and finite, [contexts, vocab].
        contexts: one a row, each with a grammar.
        picks: one a row.
        masks: those that were made beside the forward.
    """
    _tell(picks, masks.apply(logits, contexts))


def allowed(logits: Tensor, contexts: Sequence[TorchContext], picks: Sequence[Pick], masks: Masks) -> Tensor:
    """The tokens that the grammars allow as bits, int32, [contexts, ceil(vocab / 32)]; arguments as of `mask`."""
    bits, errors = masks.bits(contexts, logits.shape[1])
    _tell(picks, errors)
    return bits


def _tell(picks: Sequence[Pick], errors: Sequence[str | None]) -> None:
    for pick, error in zip(picks, errors, strict=True):
        if error is not None:
            pick.error = f"the grammar failed: {error}"


def advance(contexts: Sequence[TorchContext], picks: Sequence[Pick]) -> None:
    """Advance the grammars by the chosen tokens, where that has not been done."""
    for context, pick in zip(contexts, picks, strict=True):
        if context.grammar is None or pick.accepted or pick.error is not None:
            continue
        try:
            if context.sampling.forced:
                context.grammar.accept(pick.token)
            else:  # it was chosen among those that the mask allows
                context.grammar.accept_later(pick.token)
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
