"""Bookkeeping of KV blocks: who holds them, which are free, and which free ones still hold a known prefix."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from aios_kernel.engine.protocol import KvExhausted

PAD_BLOCK = 0
"""Never allocated and always zero: it fills the block tables of shorter contexts in a batch."""


class BlockPool:
    """Reference counts and the prefix cache of `n_blocks` KV blocks; it holds no tensors.

    A block without a reference is either free, or *idle*: published under a content key and kept, oldest first to go,
    until its memory is needed. A block's generation grows with every allocation, so that (block, generation) names
    one content for ever.
    """

    def __init__(self, n_blocks: int) -> None:
        if n_blocks < 2:
            raise ValueError("a pool needs at least two blocks, one of them for padding")
        self._free = list(range(n_blocks - 1, PAD_BLOCK, -1))
        self._references = [0] * n_blocks
        self._generations = [0] * n_blocks
        self._keys: list[bytes | None] = [None] * n_blocks
        self._published: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._suspect: set[int] = set()

    @property
    def size(self) -> int:
        """Blocks that can be allocated in all."""
        return len(self._references) - 1

    @property
    def available(self) -> int:
        """Blocks that can be allocated now, idle ones included."""
        return len(self._free) + len(self._idle)

    def allocate(self) -> int:
        """Take a block, evicting the least recently used idle one if none is free. Raises KvExhausted."""
        if self._free:
            block = self._free.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            self._unpublish(block)
        else:
            raise KvExhausted("no KV block is free")
        self._references[block] = 1
        self._generations[block] += 1
        return block

    def retain(self, block: int) -> None:
        """Add a reference to a block that is held or idle."""
        if self._references[block] == 0:
            del self._idle[block]
        self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> list[int]:
        """Drop one reference of each block; give the free ones that must be cleared because they were forgotten.

        Pass a context's blocks last first: then the tail of a prefix is evicted before its head.
        """
        clear: list[int] = []
        for block in blocks:
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._suspect:
                self._suspect.remove(block)
                clear.append(block)
            if self._keys[block] is None:
                self._free.append(block)
            else:
                self._idle[block] = None
        return clear

    def references(self, block: int) -> int:
        """How many contexts hold a block."""
        return self._references[block]

    def generation(self, block: int) -> int:
        """Names the block's content together with the block's number."""
        return self._generations[block]

    def holds(self, block: int, generation: int) -> bool:
        """Whether the block still has that content and can be attached."""
        return self._keys[block] is not None and self._generations[block] == generation

    def find(self, key: bytes) -> int | None:
        """The block published under a content key."""
        return self._published.get(key)

    def publish(self, block: int, key: bytes) -> None:
        """Make a held, full block findable; the first block of a content stays the one that is found."""
        if key not in self._published and self._keys[block] is None and block not in self._suspect:
            self._published[key] = block
            self._keys[block] = key

    def forget(self, block: int) -> None:
        """Take a held block out of the prefix cache for good, because its content is not to be trusted."""
        self._unpublish(block)
        self._generations[block] += 1
        self._suspect.add(block)

    def _unpublish(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._published[key]
            self._keys[block] = None
