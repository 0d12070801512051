"""A grammar in the middle of an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
import xgrammar

from aios_kernel.engine.protocol import Grammar

_MOST_S = 0.2
_MOST_SLOW = 3
"""Time of one token, and how many in turn may take longer: one may be slow because the machine is busy, but an
ambiguous grammar takes ever more, and every context of the step would wait."""


class Dump(msgspec.Struct, frozen=True):
    """A grammar as text: the structural tag that it was compiled from, and the tokens that it has accepted."""

    tag: str
    tokens: list[int]


_BATCH = xgrammar.BatchGrammarMatcher(max_threads=1)


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
        self._due: int | None = None
        self._watched = False

    def fill_mask(self, mask: Any, row: int) -> None:
        """Write the allowed tokens: end tokens only, once one was taken. Raises RuntimeError if that takes too long."""
        self._catch_up()
        if self._matcher.is_terminated():
            mask[row] = self._ends[0]
        else:
            self._timed(self._matcher.fill_next_token_bitmask, mask, row)

    @staticmethod
    def fill_masks(grammars: Sequence[MatcherGrammar], mask: Any) -> dict[int, str]:
        """See `GrammarBatch.fill_masks`. If all together take too long, each is watched on its own from then on."""
        began = time.perf_counter()
        errors = MatcherGrammar._catch_up_together(grammars)
        alone = {row for row, held in enumerate(grammars) if held._watched or held._matcher.is_terminated()}
        rows = [row for row in range(len(grammars)) if row not in alone and row not in errors]
        if rows:
            _BATCH.batch_fill_next_token_bitmask([grammars[row]._matcher for row in rows], mask, rows)
        if time.perf_counter() - began > _MOST_S:
            for row in rows:
                grammars[row]._watched = True
        for row in alone:
            try:
                grammars[row].fill_mask(mask, row)
            except (ValueError, RuntimeError) as error:
                errors[row] = str(error)
        return errors

    @staticmethod
    def _catch_up_together(grammars: Sequence[MatcherGrammar]) -> dict[int, str]:
        """Advance those by a token that are due; give whose token was not allowed after all."""
        due = [
            (row, held)
            for row, held in enumerate(grammars)
            if held._due is not None and not held._watched and not held._matcher.is_terminated()
        ]
        tokens = [held._due or 0 for _, held in due]
        taken = _BATCH.batch_accept_token([held._matcher for _, held in due], tokens) if due else []
        errors: dict[int, str] = {}
        for (row, held), token, allowed in zip(due, tokens, taken, strict=True):
            held._due = None
            if allowed:
                held._tokens.append(token)
            else:
                errors[row] = f"token {token} is not allowed there"
        return errors

    def accept(self, token: int) -> None:
        """Advance. Raises ValueError for a token that is not allowed, RuntimeError if it takes too long."""
        self._catch_up()
        if self._matcher.is_terminated():
            return
        if not self._timed(self._matcher.accept_token, token):
            raise ValueError("it is not allowed here")
        self._tokens.append(token)

    def accept_later(self, token: int) -> None:
        """See `Grammar.accept_later`: what it takes is then spent beside the model's forward."""
        self._catch_up()
        self._due = token

    def _catch_up(self) -> None:
        if self._due is not None:
            token, self._due = self._due, None
            try:
                self.accept(token)
            except ValueError as error:  # whoever asks now did nothing wrong
                raise RuntimeError(f"token {token} is not allowed there") from error

    def _timed(self, work: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        result = work(*arguments)
        self._slow = self._slow + 1 if time.perf_counter() - began > _MOST_S else 0
        if self._slow > _MOST_SLOW:
            raise RuntimeError(f"it is ambiguous: token after token takes over {_MOST_S:g} s; avoid nested repeats")
        return result

    def finished(self) -> bool:
        """Whether nothing but an end token may follow."""
        self._catch_up()
        if self._matcher.is_terminated():
            return True
        if not self._matcher.is_completed():
            return False
        mask = torch.full_like(self._ends, -1)
        self._matcher.fill_next_token_bitmask(mask, 0)
        return not bool((mask & ~self._ends).any())

    def fork(self) -> Grammar:
        """An independent matcher in the same state."""
        self._catch_up()
        return MatcherGrammar(self._matcher.fork(), self._ends, self._tag, self._tokens)

    def dump(self) -> str:
        """See `Grammar.dump`; `GrammarCompiler.load` reads it."""
        self._catch_up()
        return msgspec.json.encode(Dump(self._tag, self._tokens)).decode()
