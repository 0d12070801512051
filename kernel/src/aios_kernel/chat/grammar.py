"""A grammar in the middle of an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch

from aios_kernel.engine.protocol import Grammar

_MOST_S = 0.2
"""CPU time of one token; an ambiguous grammar can take ever more, and every context of the step would wait."""


class Dump(msgspec.Struct, frozen=True):
    """A grammar as text: the structural tag that it was compiled from, and the tokens that it has accepted."""

    tag: str
    tokens: list[int]


class MatcherGrammar:
    """See `aios_kernel.engine.protocol.Grammar`; the state is an xgrammar matcher.

    Args:
        matcher: the xgrammar matcher.
        ends: bit mask of the end tokens, int32, [1, ceil(vocab / 32)].
        tag: the structural tag that it was compiled from, as JSON.
        tokens: what the matcher has accepted.
    """

    def __init__(self, matcher: Any, ends: torch.Tensor, tag: str, tokens: Sequence[int] = ()) -> None:
        self._matcher = matcher
        self._ends = ends
        self._tag = tag
        self._tokens = list(tokens)

    def fill_mask(self, mask: Any, row: int) -> None:
        """Write the allowed tokens: end tokens only, once one was taken. Raises RuntimeError if that takes too long."""
        if self._matcher.is_terminated():
            mask[row] = self._ends[0]
        else:
            _timed(self._matcher.fill_next_token_bitmask, mask, row)

    def accept(self, token: int) -> None:
        """Advance. Raises ValueError for a token that is not allowed, RuntimeError if it takes too long."""
        if self._matcher.is_terminated():
            return
        if not _timed(self._matcher.accept_token, token):
            raise ValueError("it is not allowed here")
        self._tokens.append(token)

    def finished(self) -> bool:
        """Whether nothing but an end token may follow."""
        if self._matcher.is_terminated():
            return True
        if not self._matcher.is_completed():
            return False
        mask = torch.full_like(self._ends, -1)
        self._matcher.fill_next_token_bitmask(mask, 0)
        return not bool((mask & ~self._ends).any())

    def fork(self) -> Grammar:
        """An independent matcher in the same state."""
        return MatcherGrammar(self._matcher.fork(), self._ends, self._tag, self._tokens)

    def dump(self) -> str:
        """See `Grammar.dump`; `GrammarCompiler.load` reads it."""
        return msgspec.json.encode(Dump(self._tag, self._tokens)).decode()


def _timed(work: Callable[..., Any], *arguments: Any) -> Any:
    began = time.thread_time()
    result = work(*arguments)
    if time.thread_time() - began > _MOST_S:
        raise RuntimeError(
            f"it is so ambiguous that one token took over {_MOST_S:g} s; write it without nested repeats"
        )
    return result
