"""A grammar in the middle of an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch

from aios_kernel.engine.protocol import Grammar

_MOST_S = 0.2
_MOST_SLOW = 3
"""Time of one token, and how many in turn may take longer: one may be slow because the machine is busy, but an
ambiguous grammar takes ever more, and every context of the step would wait."""


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
        self._slow = 0

    def fill_mask(self, mask: Any, row: int) -> None:
        """Write the allowed tokens: end tokens only, once one was taken. Raises RuntimeError if that takes too long."""
        if self._matcher.is_terminated():
            mask[row] = self._ends[0]
        else:
            self._timed(self._matcher.fill_next_token_bitmask, mask, row)

    def accept(self, token: int) -> None:
        """Advance. Raises ValueError for a token that is not allowed, RuntimeError if it takes too long."""
        if self._matcher.is_terminated():
            return
        if not self._timed(self._matcher.accept_token, token):
            raise ValueError("it is not allowed here")
        self._tokens.append(token)

    def _timed(self, work: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        result = work(*arguments)
        self._slow = self._slow + 1 if time.perf_counter() - began > _MOST_S else 0
        if self._slow > _MOST_SLOW:
            raise RuntimeError(f"it is ambiguous: token after token takes over {_MOST_S:g} s; avoid nested repeats")
        return result

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
