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
    return max(0, end - context.n_blocks) + (1 if n_tokens > 0 and _tail_is_shared(pool, context) else 0)


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
        context.computed = following
        context.cached += max(0, min(following, context.prompt) - (following - BLOCK))
    return context.computed - start


def cached_length(pool: BlockPool, root: bytes, tokens: Sequence[int]) -> int:
    """How many tokens of a prompt `attach_cached` would find."""
    keys: list[bytes] = []
    extend_keys(keys, root, tokens[:-1])  # one token always stays pending
    known = itertools.takewhile(lambda key: pool.find(key) is not None, keys)
    return sum(1 for _ in known) * BLOCK


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
        if n_tokens == 0:
            return 0
        if _tail_is_shared(self._pool, context):
            self._copy_tail(context)
        end = context.computed + n_tokens
        while context.n_blocks * BLOCK < end:
            context.push_block(self._pool.allocate())
        if n_tokens > 1:
            for index in range(context.computed // BLOCK, min(end // BLOCK, len(context.keys))):
                self._fresh.setdefault(context.keys[index], int(context.table[index]))
        return n_tokens

    def undo(self) -> None:
        """Give every block back and forget what was attached."""
        for context, n_blocks, computed, cached in reversed(self._before):
            self._pool.release(context.cut_blocks(n_blocks))
            context.computed, context.cached = computed, cached

    def _copy_tail(self, context: TorchContext) -> None:
        """Copy on write: give the context a tail block of its own."""
        index = context.computed // BLOCK
        shared = int(context.table[index])
        own = self._pool.allocate()
        self._memory.copy(shared, own)
        context.table[index] = own
        self._pool.release([shared])


def _tail_is_shared(pool: BlockPool, context: TorchContext) -> bool:
    index, used = divmod(context.computed, BLOCK)
    return used > 0 and pool.references(int(context.table[index])) > 1
