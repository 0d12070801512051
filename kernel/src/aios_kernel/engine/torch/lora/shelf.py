"""The adapters of an engine: all of them in host memory, those in use in the KV pool too (S-LoRA, Sheng et al. 2024).

An adapter takes blocks of the pool as a context does. While nobody uses it they lie idle, like those of a cached
prefix: what has been unused for the longest time, prefix or adapter, gives way first. On the CPU host memory is the
device's, so the blocks are only counted; elsewhere the weights lie in them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aios_kernel.engine.protocol import KvExhausted
from aios_kernel.engine.torch.blocks import BlockPool
from aios_kernel.engine.torch.kv import KvMemory
from aios_kernel.engine.torch.lora.adapter import Adapter
from aios_kernel.engine.torch.prefix import BLOCK
from aios_kernel.errors import Busy, InvalidRequest, OutOfMemory, UnknownModel


class Shelf:
    """Adapters by name, and who uses them.

    Args:
        pool: bookkeeping of the blocks that they share with the KV.
        memory: the blocks.
        paged: whether weights are multiplied from there.
    """

    def __init__(self, pool: BlockPool, memory: KvMemory, *, paged: bool) -> None:
        self._pool = pool
        self._memory = memory
        self._paged = paged
        self._block_numbers = sum(math.prod(shape) for shape in memory.shapes(1))
        self._adapters: dict[str, Adapter] = {}
        self._users: dict[Adapter, int] = {}
        self._blocks: dict[Adapter, list[int]] = {}
        self._tokens: dict[str, int] = {}

    def tokens(self) -> Mapping[str, int]:
        """Tokens of KV that each adapter takes the room of, by name; never changed, but made anew."""
        return self._tokens

    def add(self, adapter: Adapter) -> None:
        """Take an adapter in; one that is known is left as it is.

        Raises:
            InvalidRequest: another one has its name.
            OutOfMemory: the pool could never hold it.
        """
        known = self._adapters.get(adapter.name)
        if known is not None and known.digest != adapter.digest:
            raise InvalidRequest(
                f'a LoRA adapter "{adapter.name}" is loaded already, and its weights are others',
                fix="unload it first, or give this one another name",
            )
        if self._size(adapter) >= self._pool.size:
            raise OutOfMemory(
                f'the LoRA adapter "{adapter.name}" takes the room of {self._size(adapter) * BLOCK:,} tokens, '
                f"the pool holds {self._pool.size * BLOCK:,}",
                fix=f"aios serve --kv-tokens {4 * self._size(adapter) * BLOCK}",
            )
        self._adapters.setdefault(adapter.name, adapter)
        self._tokens = self._tokens | {adapter.name: self._size(adapter) * BLOCK}

    def remove(self, name: str) -> None:
        """Forget an adapter. Raises UnknownModel, or Busy while contexts use it."""
        adapter = self.find(name)
        if adapter in self._users:
            raise Busy(
                f'the LoRA adapter "{name}" is in use by {self._users[adapter]} contexts',
                fix="unload it when their calls have ended",
            )
        del self._adapters[name]
        self._tokens = {other: tokens for other, tokens in self._tokens.items() if other != name}

    def find(self, name: str) -> Adapter:
        """An adapter by its name. Raises UnknownModel."""
        if name not in self._adapters:
            near = difflib.get_close_matches(name, self._adapters, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            raise UnknownModel(
                f'no LoRA adapter "{name}" is loaded{hint}', fix=f"aios serve MODEL --lora {name}=PATH, or [loras]"
            )
        return self._adapters[name]

    def take(self, adapter: Adapter) -> None:
        """Use an adapter, for one context. Raises KvExhausted, with nothing changed."""
        if adapter not in self._users:
            self._blocks[adapter] = self._page_in(adapter)
        self._users[adapter] = self._users.get(adapter, 0) + 1

    def give_back(self, adapter: Adapter) -> None:
        """End a use."""
        self._users[adapter] -= 1
        if not self._users[adapter]:
            del self._users[adapter]
            self._pool.release(reversed(self._blocks.pop(adapter)))

    def prefetch(self, name: str) -> None:
        """Bring an adapter into the pool for a use that is to come, if there is room for it. Raises UnknownModel."""
        adapter = self.find(name)
        try:
            self.take(adapter)
        except KvExhausted:
            return
        self.give_back(adapter)

    def resident(self, name: str) -> bool:
        """Whether an adapter has all its blocks in the pool, in use or idle. Raises UnknownModel."""
        adapter = self.find(name)
        return all(self._pool.find(_key(adapter, index)) is not None for index in range(self._size(adapter)))

    def weights(self, adapter: Adapter) -> Tensor:
        """The weights of an adapter in use, on the model's device."""
        if not self._paged:
            return adapter.weights
        return self._memory.numbers(self._blocks[adapter])[: adapter.weights.numel()]

    def _size(self, adapter: Adapter) -> int:
        return -(-adapter.weights.numel() // self._block_numbers)

    def _page_in(self, adapter: Adapter) -> list[int]:
        """Blocks for an adapter: those that it still has in the pool, and fresh ones."""
        keys = [_key(adapter, index) for index in range(self._size(adapter))]
        blocks = [self._pool.find(key) for key in keys]
        kept = [block for block in blocks if block is not None]
        for block in kept:
            self._pool.retain(block)
        missing = len(keys) - len(kept)
        if missing > self._pool.available:
            self._pool.release(reversed(kept))
            raise KvExhausted(f"{missing} blocks needed for an adapter, {self._pool.available} available")
        taken = [self._pool.allocate() if block is None else block for block in blocks]
        for key, block in zip(keys, taken, strict=True):
            self._pool.publish(block, key)
        if self._paged:
            self._write(adapter, taken, [row for row, block in enumerate(blocks) if block is None])
        return taken

    def _write(self, adapter: Adapter, blocks: Sequence[int], rows: Sequence[int]) -> None:
        """Put the weights into those of its blocks that do not hold them yet."""
        room = len(blocks) * self._block_numbers
        numbers = torch.nn.functional.pad(adapter.weights, (0, room - adapter.weights.numel()))
        shapes = self._memory.shapes(len(blocks))
        parts = numbers.split([math.prod(shape) for shape in shapes])
        data = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        self._memory.write([blocks[row] for row in rows], data, rows)


def _key(adapter: Adapter, index: int) -> bytes:
    """The content key of one of an adapter's blocks; its length is no prefix's."""
    return b"lora\0" + adapter.digest + index.to_bytes(4, "little")
