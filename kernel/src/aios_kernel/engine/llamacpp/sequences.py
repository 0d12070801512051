"""The sequences of a context of llama.cpp: those that live, and those kept because their beginnings may come again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aios_kernel.engine.llamacpp.cells import Cells
from aios_kernel.engine.llamacpp.context import NONE, LlamaContext
from aios_kernel.engine.llamacpp.runner import LlamaRunner
from aios_kernel.engine.protocol import KvExhausted


@dataclass(slots=True, eq=False)
class Kept:
    """What is left of a released context: its computed tokens and their KV."""

    sequence: int
    tokens: list[int]
    cells: list[int]
    domain: tuple[bytes, str | None]


class Sequences:
    """Gives contexts their sequences and cells. What is kept goes, the longest unused first, when room is needed.

    Args:
        runner: holds the KV.
        kv_tokens: cells that may be used.
        n: sequences that there are.
    """

    def __init__(self, runner: LlamaRunner, kv_tokens: int, n: int) -> None:
        self._runner = runner
        self._cells = Cells(kv_tokens)
        self._unused = [*range(n - 1, -1, -1)]
        self._live: dict[LlamaContext, None] = {}
        self._kept: dict[Kept, None] = {}  # the one used last at the end

    @property
    def free(self) -> int:
        """Cells that can still be allocated, those of what is kept included."""
        return self._cells.free

    def attach(self, context: LlamaContext) -> None:
        """Share the longest beginning of its tokens that is there, all but the last token at most."""
        found, n_tokens = self._longest(context)
        if found is not None:
            self.share(found, context, n_tokens)
            context.cached = n_tokens

    def share(self, source: LlamaContext | Kept, target: LlamaContext, n_tokens: int) -> None:
        """Let a new context share the first computed tokens of another, or of what is kept.

        What is kept gives its own sequence away if all of it is shared, or there is no other one. Raises KvExhausted:
        there is no sequence.
        """
        if not n_tokens:
            return
        if isinstance(source, Kept):
            if n_tokens == len(source.tokens) or (not self._unused and len(self._kept) == 1):
                self._take_over(source, target, n_tokens)
                return
            del self._kept[source]  # used last: the others go before it
            self._kept[source] = None
        self._enter(target)
        self._runner.copy(source.sequence, target.sequence, n_tokens)
        self._use(target, source.cells, n_tokens)

    def enter(self, contexts: Sequence[LlamaContext]) -> None:
        """Give those a sequence that have none. Raises KvExhausted; none was given one then."""
        new = [context for context in contexts if context.sequence == NONE]
        if len(new) > len(self._unused) + len(self._kept):
            raise KvExhausted(f"{len(new)} sequences needed, {len(self._unused) + len(self._kept)} available")
        for context in new:
            self._enter(context)

    def extend(self, context: LlamaContext, n_tokens: int) -> None:
        """Take the cells for tokens that are about to be computed; there are as many."""
        while self._cells.empty < n_tokens:
            self._drop(next(iter(self._kept)))
        context.cells += self._cells.take(n_tokens)

    def shrink(self, context: LlamaContext) -> None:
        """Give those back again that were not computed."""
        self._cells.leave(context.cells[context.computed :])
        del context.cells[context.computed :]

    def leave(self, context: LlamaContext) -> Kept | None:
        """End a context; what it computed is kept, and given, unless it cannot be trusted."""
        self._live.pop(context, None)
        sequence, context.sequence = context.sequence, NONE
        cells, context.cells = context.cells, []
        if sequence == NONE:
            return None
        kept = None
        if cells and not context.poisoned:
            kept = Kept(sequence, context.tokens[: context.computed], cells, (context.salt, context.lora))
            self._cells.keep(cells)
            self._kept[kept] = None
        else:
            self._runner.cut(sequence)
            self._unused.append(sequence)
        self._cells.leave(cells)
        return kept

    def reclaim(self, kept: Kept | None, context: LlamaContext) -> bool:
        """Give a context back what was kept of it, if that is still there."""
        if kept is None or kept not in self._kept:
            return False
        self._take_over(kept, context, len(kept.tokens))
        return True

    def forget(self, lora: str) -> None:
        """Keep nothing that was computed with this adapter."""
        for kept in [kept for kept in self._kept if kept.domain[1] == lora]:
            self._drop(kept)

    def _take_over(self, source: Kept, target: LlamaContext, n_tokens: int) -> None:
        del self._kept[source]
        if n_tokens < len(source.tokens):
            self._runner.cut(source.sequence, n_tokens)
        target.sequence = source.sequence
        self._live[target] = None
        self._use(target, source.cells, n_tokens)
        self._cells.drop(source.cells)

    def _use(self, context: LlamaContext, cells: list[int], n_tokens: int) -> None:
        context.cells = cells[:n_tokens]
        context.computed = n_tokens
        self._cells.use(context.cells)

    def _enter(self, context: LlamaContext) -> None:
        if not self._unused:
            if not self._kept:
                raise KvExhausted("all sequences are in use")
            self._drop(next(iter(self._kept)))
        context.sequence = self._unused.pop()
        self._live[context] = None

    def _longest(self, context: LlamaContext) -> tuple[LlamaContext | Kept | None, int]:
        domain, most = (context.salt, context.lora), len(context.tokens) - 1
        best: tuple[LlamaContext | Kept | None, int] = (None, 0)
        if not self._unused and not self._kept:
            return best
        for kept in self._kept:
            if kept.domain == domain and (length := common(kept.tokens, context.tokens, most)) > best[1]:
                best = (kept, length)
        for live in self._live:
            if (live.salt, live.lora) == domain and not live.poisoned:
                length = common(live.tokens, context.tokens, min(most, live.computed))
                if length > best[1]:
                    best = (live, length)
        return best

    def _drop(self, kept: Kept) -> None:
        del self._kept[kept]
        self._runner.cut(kept.sequence)
        self._unused.append(kept.sequence)
        self._cells.drop(kept.cells)


def common(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """How many of the first `most` tokens both begin with; slices are compared at once, so by halves."""
    low, high = 0, min(most, len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
