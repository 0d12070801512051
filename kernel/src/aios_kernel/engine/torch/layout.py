"""Where the tokens of one forward live: the slots they are written to and the blocks they attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.dense import DenseCache, DenseKv, padded_tables
from aios_kernel.engine.torch.kv import KvMemory
from aios_kernel.engine.torch.native.plan import Plan
from aios_kernel.engine.torch.paged.plan import PagedPlan
from aios_kernel.engine.torch.prefix import BLOCK

PIECE = 512
"""Rows of a chunk whose attention is one call: it bounds the mask, and what a row must skip behind itself."""
MAX_WASTE = 2
"""A context joins a group of longer ones while its table is at least this fraction (1 / MAX_WASTE) of the longest."""


@dataclass(slots=True)
class DecodeGroup:
    """Contexts with one token each, of similar length, whose attention is one call; rows `low` to `high`."""

    low: int
    high: int
    lengths: Tensor
    """KV length of each row, its new token included."""
    blocks: Tensor
    """Block numbers, row after row, padded with the zero block: [(high - low) * columns]; unused with `dense`."""
    dense: DenseKv | None = None
    _masks: dict[int | None, Tensor] = field(default_factory=dict[int | None, Tensor])
    _at: Tensor | None = None

    @property
    def slots(self) -> int:
        """Tokens of KV that are fetched of a row, padding included."""
        return self.dense.used if self.dense else len(self.blocks) // (self.high - self.low) * BLOCK

    def fetch(self, memory: KvMemory, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the rows, [rows, heads, slots, dim]; `key` and `value` are the packed new ones."""
        if self.dense is None:
            return memory.gather(layer, self.blocks, self.high - self.low)
        if self._at is None:
            rows = torch.arange(self.high - self.low, device=self.lengths.device)
            self._at = rows * self.dense.slots + self.lengths - 1
        new = slice(self.low, self.high)
        return self.dense.update(memory, layer, self._at, key[0, :, new], value[0, :, new])

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What the rows may not see, as an additive mask [rows, 1, 1, slots]; kept for the other layers."""
        if window not in self._masks:
            self._masks[window] = _additive(self.lengths[:, None] - 1, self.slots, window, dtype)[:, None, None]
        return self._masks[window]


@dataclass(slots=True)
class Chunk:
    """Consecutive tokens of one context, rows `low` to `high`, of which the first has position `start`."""

    low: int
    high: int
    start: int
    blocks: Tensor
    _masks: dict[int | None, Tensor] = field(default_factory=dict[int | None, Tensor])
    """By window; of chunks that are one piece."""

    @property
    def length(self) -> int:
        """KV length, the chunk's own tokens included."""
        return self.start + self.high - self.low

    def plain(self, window: int | None) -> bool:
        """Whether the chunk attends to itself only, and to all that is before: plain causal attention."""
        return self.start == 0 and (window is None or self.length <= window)

    def mask(self, window: int | None, dtype: torch.dtype, first: int, rows: int) -> Tensor:
        """What `rows` of the chunk from its `first` on may not see, as an additive mask [1, 1, rows, seen].

        Nothing behind the last of them is in it. The mask of a chunk that is one piece is kept for the other layers.
        """
        if window in self._masks:
            return self._masks[window]
        start = self.start + first
        positions = torch.arange(start, start + rows, device=self.blocks.device)[:, None]
        mask = _additive(positions, start + rows, window, dtype)[None, None]
        if rows == self.high - self.low:
            self._masks[window] = mask
        return mask


@dataclass(slots=True)
class Layout:
    """The packed rows of a forward: first the decoding contexts, the longest first, then the chunks."""

    slots: Tensor
    groups: list[DecodeGroup]
    chunks: list[Chunk]
    plan: Plan | None = None
    """For the compiled attention, which needs no groups and chunks."""
    paged: PagedPlan | None = None
    """For the attention of a GPU, which needs none either."""


def decode_groups(
    contexts: Sequence[TorchContext], lengths: Sequence[int], cache: DenseCache, device: torch.device
) -> list[DecodeGroup]:
    """Cut contexts, sorted by falling length, into groups that waste little on padding."""
    groups: list[DecodeGroup] = []
    low = 0
    while low < len(contexts):
        columns, high = contexts[low].n_blocks, low + 1
        while high < len(contexts) and contexts[high].n_blocks * MAX_WASTE >= columns:
            high += 1
        members, their_lengths = contexts[low:high], list(lengths[low:high])
        dense = cache.find(members, their_lengths, device)
        blocks = torch.empty(0, dtype=torch.long) if dense else padded_tables(members, columns).to(device)
        groups.append(DecodeGroup(low, high, torch.tensor(their_lengths, device=device), blocks, dense))
        low = high
    return groups


def _additive(positions: Tensor, slots: int, window: int | None, dtype: torch.dtype) -> Tensor:
    columns = torch.arange(slots, device=positions.device)
    hidden = columns > positions
    if window is not None:
        hidden |= columns <= positions - window
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
