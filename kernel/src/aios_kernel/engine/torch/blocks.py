"""Bookkeeping of KV blocks: who holds them, which are free, and which free ones still hold a known prefix."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from aios_kernel.engine.protocol import KvExhausted
from aios_kernel.engine.torch.beginnings import Beginnings
from aios_kernel.engine.torch.eviction import NEVER, IdleBlocks
from aios_kernel.engine.torch.holds import Hold, HoldBook
from aios_kernel.engine.torch.prefix import BLOCK

PAD_BLOCK = 0
"""Never allocated and always zero: it fills the block tables of shorter contexts in a batch."""


class BlockPool:
    """Reference counts and the prefix cache of `n_blocks` KV blocks; it holds no tensors.

    A block without a reference is either free, or *idle*: published under a content key and kept until its memory is
    needed (`eviction` has the order). A published block is full, or a *tail* that grows while its context does. A
    block's generation grows with every allocation, so that (block, generation) names one content for ever.

    Args:
        n_blocks: the padding block included.
        clock: gives the time in seconds, for holds that expire.
    """

    def __init__(self, n_blocks: int, clock: Callable[[], float] = time.monotonic) -> None:
        if n_blocks < 2:
            raise ValueError("a pool needs at least two blocks, one of them for padding")
        self._clock = clock
        self._free = deque(range(n_blocks - 1, PAD_BLOCK, -1))
        self._references = np.zeros(n_blocks, dtype=np.int32)
        self._generations = [0] * n_blocks
        self._keys: list[bytes | None] = [None] * n_blocks
        self._published: dict[bytes, int] = {}
        self._beginnings = Beginnings()
        self._idle = IdleBlocks()
        self._holds = HoldBook()
        self._pins: set[Hold] = set()
        self._suspect: set[int] = set()
        self._copying: dict[int, Future[None]] = {}

    @property
    def size(self) -> int:
        """Blocks that can be allocated in all."""
        return len(self._references) - 1

    @property
    def available(self) -> int:
        """Blocks that can be allocated now, idle ones included."""
        return len(self._free) + len(self._idle)

    @property
    def held(self) -> int:
        """Blocks with a reference."""
        return int(np.count_nonzero(self._references))

    def allocate(self) -> int:
        """Take a block, evicting an idle one if none is free. Raises KvExhausted.

        Waits for the copy of a block whose old content is on its way to the host.
        """
        if self._free:
            block = self._free.pop()
        elif self._idle:
            now = self._clock()
            block = self._idle.pop(now, lambda block: self._holds.standing(block, now))
            self._unpublish(block)
        else:
            raise KvExhausted("no KV block is free")
        self._holds.forget(block)
        self._await_copy(block)
        self._references[block] = 1
        self._generations[block] += 1
        return block

    def retain(self, block: int) -> None:
        """Add a reference to a block that is held or idle."""
        if block in self._idle:
            self._idle.remove(block)
            self._holds.strike_expired(block, self._clock())
        self._references[block] += 1

    def share(self, blocks: NDArray[np.int64]) -> None:
        """Add a reference to each of several different blocks, all of them held."""
        self._references[blocks] += 1

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
                self._await_copy(block)
                clear.append(block)
            if self._keys[block] is not None:
                self._lay_idle(block)
            elif not self._is_copied(block):
                self._free.appendleft(block)  # the last to be taken
            else:
                self._free.append(block)
        return clear

    def references(self, block: int) -> int:
        """How many contexts hold a block."""
        return int(self._references[block])

    def generation(self, block: int) -> int:
        """Names the block's content together with the block's number."""
        return self._generations[block]

    def holds(self, block: int, generation: int) -> bool:
        """Whether the block still has that content and can be attached."""
        return self._keys[block] is not None and self._generations[block] == generation

    def find(self, key: bytes) -> int | None:
        """The block published under a content key."""
        return self._published.get(key)

    def begins_like(self, parent: bytes, tokens: Sequence[int]) -> tuple[int, int]:
        """The published block behind `parent` that begins most like `tokens`, and how far; see `Beginnings.longest`."""
        return self._beginnings.longest(parent, tokens)

    def publish(self, block: int, key: bytes, parent: bytes = b"", tokens: Sequence[int] = ()) -> None:
        """Make a held block findable; the first block of a content stays the one that is found.

        Args:
            block: it may have been published as a shorter tail; of a longer content it stays.
            key: of its content.
            parent: key of what stands in front of it.
            tokens: its content, for whoever can use a part of it; may be left out.
        """
        if key in self._published or block in self._suspect or self.holds_more(block, len(tokens)):
            return
        self._unpublish(block)
        self._published[key] = block
        self._keys[block] = key
        if tokens:
            self._beginnings.add(block, parent, tokens)

    def adopt(self, block: int, length: int) -> bool:
        """Take a block for one's own that is idle and holds no more than the first `length` tokens of its content.

        False when it is used, holds more, or is being read: then it is to be copied.
        """
        if block not in self._idle or self._beginnings.length(block) > length or not self._is_copied(block):
            return False
        self.retain(block)
        self._generations[block] += 1  # what follows is its new owner's
        return True

    def is_shared(self, block: int) -> bool:
        """Whether more than one context holds a block, so that none may write to it."""
        return self._references[block] > 1

    def count_shared(self, blocks: Sequence[int]) -> int:
        """How many of the blocks more than one context holds."""
        return int(np.count_nonzero(self._references[blocks] > 1)) if blocks else 0

    def guarded(self, blocks: Sequence[int]) -> set[int]:
        """Those of the blocks, all of them held, that others may rely on: shared, or findable in the prefix cache."""
        shared = itertools.compress(blocks, (self._references[blocks] > 1).tolist())
        return {*shared, *self._beginnings.known(blocks)}

    def holds_more(self, block: int, length: int) -> bool:
        """Whether a block is known to hold more than `length` tokens, which writing behind them would destroy."""
        return self._beginnings.length(block) > length

    def is_tail(self, block: int) -> bool:
        """Whether a block is known to be filled in part."""
        return 0 < self._beginnings.length(block) < BLOCK

    def withdraw(self, block: int) -> None:
        """Let a held block be found no longer, because its content is about to change or is not whole."""
        if self._keys[block] is not None:
            self._unpublish(block)
            self._generations[block] += 1

    def forget(self, block: int) -> None:
        """Take a held block out of the prefix cache for good, because its content is not to be trusted."""
        self._unpublish(block)
        self._generations[block] += 1
        self._suspect.add(block)

    def copying(self, blocks: Iterable[int], done: Future[None]) -> None:
        """Note that the content of blocks is being read until `done`; they are not handed out before."""
        self._copying.update(dict.fromkeys(blocks, done))

    def hold(
        self, blocks: Sequence[int], *, priority: int, ttl_s: float | None, pinned: bool, n_tokens: int | None = None
    ) -> Hold:
        """Keep the published blocks of a prefix, from its first one on, in the cache once nobody uses them.

        Args:
            blocks: in the order of their tokens.
            priority: blocks of lower priority are evicted before; unheld ones have 0.
            ttl_s: seconds after which nobody wants them any longer; None: until `drop`.
            pinned: also take a reference, so that they count as used; for this a hold does not expire by itself.
            n_tokens: what they hold of the prefix; None: all are full.
        """
        hold = Hold(
            blocks=tuple((block, self._generations[block]) for block in blocks),
            priority=priority,
            expires_s=NEVER if ttl_s is None or pinned else self._clock() + ttl_s,
            pinned=pinned,
            n_tokens=len(blocks) * BLOCK if n_tokens is None else n_tokens,
        )
        self._holds.add(hold)
        for block in reversed(blocks):
            if block in self._idle:  # at its new place
                self._idle.remove(block)
                self._lay_idle(block)
        if pinned:
            self._pins.add(hold)
            for block in blocks:
                self.retain(block)
        return hold

    def drop(self, hold: Hold) -> list[int]:
        """End a hold, also one that has ended; gives blocks to clear, as `release`."""
        for block in reversed(self._holds.remove(hold)):
            if block in self._idle:
                self._idle.remove(block)
                self._lay_idle(block)
        if hold not in self._pins:
            return []
        self._pins.remove(hold)
        return self.release(block for block, _ in reversed(hold.blocks))

    def _lay_idle(self, block: int) -> None:
        now = self._clock()
        self._holds.strike_expired(block, now)
        standing = self._holds.standing(block, now)
        assert standing is not None  # the expired holds are gone
        self._idle.add(block, standing)

    def _is_copied(self, block: int) -> bool:
        return block not in self._copying or self._copying[block].done()

    def _await_copy(self, block: int) -> None:
        done = self._copying.pop(block, None)
        if done is not None:
            done.exception()  # waits; whose copy it is will be told of its failure

    def _unpublish(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._published[key]
            self._keys[block] = None
            self._beginnings.remove(block)
