"""The next decode step, begun before anybody has seen the tokens of this one, so that the device never waits.

Most steps decode the same contexts as the step before. Their next tokens are on the device as soon as they are chosen;
so the step behind can be put into the device's queue at once, and reads them there. When the kernel then asks for that
step, it is under way or done. A context that it does not ask for (its answer has ended) leaves, and what was computed
for it is nobody's: a key and value behind the end of its last block, which whoever goes on there writes again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from aios_kernel.engine.torch.batch import Work, pack
from aios_kernel.engine.torch.blocks import BlockPool
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.masks import Masks
from aios_kernel.engine.torch.paged import choices
from aios_kernel.engine.torch.paged.forward import PagedForward
from aios_kernel.engine.torch.prefix import BLOCK

_HOST = torch.device("cpu")
_STEADY = 2
"""Steps that all decode, one after the other, before one is begun ahead."""


@dataclass(slots=True)
class _Member:
    """A context of the step ahead: what it computes, how many tokens will be computed before, its blocks before."""

    work: Work
    computed: int
    n_blocks: int


@dataclass(frozen=True, slots=True)
class Taken:
    """A step that was begun ahead and is wanted.

    Attributes:
        works: of the contexts that were asked for, in their order.
        tokens: that all rows of it choose, on the device.
        finish: waits for the choices and leaves them with the works.
        undo: gives back the blocks that were taken.
    """

    works: list[Work]
    tokens: Tensor
    finish: Callable[[], None]
    undo: Callable[[], None]


class RunAhead:
    """At most one step that nobody has asked for yet.

    Args:
        pool: where its blocks come from.
        forward: launches it; only as a graph, since launching kernel by kernel would take the host too long.
    """

    def __init__(self, pool: BlockPool, forward: PagedForward) -> None:
        self._pool = pool
        self._forward = forward
        self._members: dict[int, _Member] = {}
        self._choosing: choices.Choosing | None = None
        self._steady = 0
        self.taken = 0
        """Steps that were begun ahead and then asked for."""

    def covered(self, entries: Sequence[tuple[TorchContext, int]]) -> list[TorchContext]:
        """Those of a plan's contexts whose part of it is under way."""
        return [context for context, _ in entries if self._is_current(context)]

    def take(self, contexts: Sequence[TorchContext]) -> Taken:
        """The step ahead for these contexts, all of them `covered`; the others leave it."""
        assert self._choosing is not None
        members = [self._members.pop(id(context)) for context in contexts]
        choosing = self._choosing
        self.forget()
        works = [member.work for member in members]
        self.taken += 1

        def finish() -> None:
            told = choices.finish(choosing, {id(context) for context in contexts})
            for work in works:
                work.choice = told[work.row]

        def undo() -> None:
            for member in members:
                self._give_back(member)

        return Taken(works, choosing.tokens, finish, undo)

    def follow(self, works: Sequence[Work], tokens: Tensor) -> None:
        """Begin the step behind one that was just launched, if it is likely to be asked for.

        Args:
            works: of the launched step.
            tokens: that its rows choose, on the device.
        """
        contexts = [work.context for work in works]
        self._steady = self._steady + 1 if all(map(_decodes, works)) else 0
        if self._steady < _STEADY or not all(map(_predictable, contexts)) or len(contexts) * 2 > self._pool.available:
            return
        rows = [work.row for work in works]
        with _one_token_on(contexts):
            members = [_Member(Work(context, 1), context.computed, context.n_blocks) for context in contexts]
            self._members = {id(member.work.context): member for member in members}
            for context in contexts:
                if not context.computed % BLOCK:
                    context.push_block(self._pool.allocate())
            batch = pack([member.work for member in members], None, _HOST)
            row_of = {id(context): row for context, row in zip(contexts, rows, strict=True)}
            chain = [row_of[id(work.context)] for work in batch.emitting]
            logits = self._forward.chained(batch, tokens, chain)
            if logits is None:
                self.forget()
                return
            self._choosing = choices.begin(logits, [work.context for work in batch.emitting], Masks())

    def leave(self, context: TorchContext) -> None:
        """Take a context out, because something else is done with it."""
        member = self._members.pop(id(context), None)
        if member is not None:
            self._give_back(member)

    def forget(self) -> None:
        """Drop the step."""
        for member in self._members.values():
            self._give_back(member)
        self._members = {}
        self._choosing = None

    def _is_current(self, context: TorchContext) -> bool:
        member = self._members.get(id(context))
        return member is not None and context.computed == member.computed and context.pending == 1

    def _give_back(self, member: _Member) -> None:
        context = member.work.context
        if not context.closed:
            self._pool.release(context.cut_blocks(member.n_blocks))


def _decodes(work: Work) -> bool:
    return work.n_tokens == 1 and work.finishes


def _predictable(context: TorchContext) -> bool:
    """Whether its next token but one depends on nothing that only the host knows."""
    return context.grammar is None and not context.sampling.penalised and not context.wants_prompt


@contextmanager
def _one_token_on(contexts: Sequence[TorchContext]) -> Generator[None]:
    """Let contexts look as they will when the step under way is over, but for the token, which nobody knows yet."""
    for context in contexts:
        context.tokens.append(0)
        context.computed += 1
        context.emitted += 1
    try:
        yield
    finally:
        for context in contexts:
            context.tokens.pop()
            context.computed -= 1
            context.emitted -= 1
