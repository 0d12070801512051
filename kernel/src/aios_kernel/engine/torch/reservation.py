"""Blocks taken for one step, so that a step that fails can give them back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from aios_kernel.engine.torch.blocks import BlockPool
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.kv import KvMemory
from aios_kernel.engine.torch.prefix import BLOCK, extend_keys


def blocks_needed(pool: BlockPool, context: TorchContext, n_tokens: int) -> int:
    """Blocks that computing `n_tokens` more takes from the pool, at most (the prefix cache may save some)."""
    end = -(-(context.computed + n_tokens) // BLOCK)
    tail = _tail(context)
    return max(0, end - context.n_blocks) + (n_tokens > 0 and tail is not None and pool.is_shared(tail))


def blocks_needed_to_decode(pool: BlockPool, contexts: Sequence[TorchContext]) -> int:
    """The sum of `blocks_needed` for one token each, of contexts that decode."""
    tails = [context.tail for context in contexts if context.computed % BLOCK]
    return len(contexts) - len(tails) + pool.count_shared(tails)


def attach_cached(pool: BlockPool, context: TorchContext, limit: int, fresh: dict[bytes, int]) -> int:
    """Attach known blocks in place of computing them; give how many tokens that saved.

    At least one token stays pending, so that the context's last step yields logits.

    Args:
        pool: where published blocks are found.
        context: its computed tokens must fill whole blocks, else nothing is attached.
        limit: tokens to attach at most.
        fresh: blocks by content key that are being computed in this very step: their keys and values are written
            before anything attends to them, layer by layer.
    """
    if context.computed % BLOCK or context.wants_prompt:
        return 0
    context.extend_keys()
    start = context.computed
    for key in context.keys[start // BLOCK :]:
        following = context.computed + BLOCK
        block = fresh.get(key) or pool.find(key)
        if block is None or following >= len(context.tokens) or following - start > limit:
            break
        pool.retain(block)
        context.push_block(block)
        context.skip(BLOCK)
    return context.computed - start


def cached_length(pool: BlockPool, root: bytes, tokens: Sequence[int]) -> int:
    """How many tokens of a prompt need not be computed now."""
    keys: list[bytes] = []
    tokens = tokens[:-1]  # one token always stays pending
    extend_keys(keys, root, tokens)
    known = sum(1 for _ in itertools.takewhile(lambda key: pool.find(key) is not None, keys))
    parent = keys[known - 1] if known else root
    _, beginning = pool.begins_like(parent, tokens[known * BLOCK : (known + 1) * BLOCK])
    return known * BLOCK + beginning


class Reservation:
    """Reserves the blocks of a step, context after context; `undo` restores all of them."""

    def __init__(self, pool: BlockPool, memory: KvMemory) -> None:
        self._pool = pool
        self._memory = memory
        self._fresh: dict[bytes, int] = {}
        self._before: list[tuple[TorchContext, int, int, int]] = []

    def take(self, context: TorchContext, n_tokens: int) -> int:
        """Make room for the next `n_tokens` of a context; give how many of them are still to be computed.

        Tokens that another context computed, or computes in this step, are attached and count as computed.
        The caller has made sure that `blocks_needed` fits.
        """
        self._before.append((context, context.n_blocks, context.computed, context.cached))
        if context.pending > 1:
            n_tokens -= attach_cached(self._pool, context, n_tokens, self._fresh)
            n_tokens -= self._copy_beginning(context, n_tokens)
        if n_tokens == 0:
            return 0
        self._own_tail(context)
        end = context.computed + n_tokens
        while context.n_blocks * BLOCK < end:
            context.push_block(self._pool.allocate())
        if n_tokens > 1:
            for index in range(context.computed // BLOCK, min(end // BLOCK, len(context.keys))):
                self._fresh.setdefault(context.keys[index], int(context.table[index]))
        return n_tokens

    def take_decoding(self, contexts: Sequence[TorchContext]) -> None:
        """As `take` for one token each, of contexts that decode."""
        self._before += [(c, c.n_blocks, c.computed, c.cached) for c in contexts]
        guarded = self._pool.guarded([context.tail for context in contexts])
        for context in contexts:
            if not context.computed % BLOCK:
                context.push_block(self._pool.allocate())
            elif context.tail in guarded:
                self._own_tail(context)

    def undo(self) -> None:
        """Give every block back and forget what was attached."""
        for context, n_blocks, computed, cached in reversed(self._before):
            cut = context.cut_blocks(n_blocks)
            context.computed, context.cached = computed, cached
            for block in [*cut, *context.blocks[-1:]]:
                if self._pool.is_tail(block) and not self._pool.is_shared(block):
                    self._pool.withdraw(block)  # who knows what was written behind its tokens
            self._pool.release(cut)

    def _copy_beginning(self, context: TorchContext, limit: int) -> int:
        """Make the first tokens of a block that is known to begin alike the context's next; give how many.

        It takes no more blocks than computing these tokens would: the copy is the block that they would go to.
        """
        limit = min(limit, context.pending - 1)
        if limit <= 0 or context.computed % BLOCK or context.wants_prompt:
            return 0
        start = context.computed
        source, length = self._pool.begins_like(context.key_before(start), context.tokens[start : start + BLOCK])
        length = min(length, limit)
        if not length:
            return 0
        if self._pool.adopt(source, length):
            context.push_block(source)
        else:
            self._memory.copy(source, own := self._pool.allocate(), length)  # the block found may be the one evicted
            context.push_block(own)
        context.skip(length)
        return length

    def _own_tail(self, context: TorchContext) -> None:
        """Copy on write: see to it that nobody loses what the context's tail block holds by a token more."""
        tail = _tail(context)
        if tail is None:
            return
        if not self._pool.is_shared(tail):
            if not self._pool.holds_more(tail, context.computed % BLOCK):
                return
            if not self._pool.available:  # what the cache would lose is worth less than the step
                self._pool.withdraw(tail)
                return
        self._memory.copy(tail, own := self._pool.allocate(), context.computed % BLOCK)
        context.exchange_tail(own)
        self._pool.release([tail])


def _tail(context: TorchContext) -> int | None:
    """The block that the context's next token goes to, if it holds some tokens already."""
    return context.tail if context.computed % BLOCK else None
