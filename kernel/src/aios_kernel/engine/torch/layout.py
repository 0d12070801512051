"""Where the tokens of one forward live: the slots they are written to and the blocks they attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aios_kernel.engine.torch.blocks import PAD_BLOCK
from aios_kernel.engine.torch.prefix import BLOCK

MAX_WASTE = 2
"""A context joins a group of longer ones while its table is at least this fraction (1 / MAX_WASTE) of the longest."""


@dataclass(slots=True)
class DecodeGroup:
    """Contexts with one token each, of similar length, whose attention is one call; rows `low` to `high`."""

    low: int
    high: int
    blocks: Tensor
    """Block numbers, row after row, padded with the zero block: [(high - low) * columns]."""
    lengths: Tensor
    """KV length of each row, its new token included."""
    _masks: dict[int | None, Tensor] = field(default_factory=dict[int | None, Tensor])

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What the rows may not see, as an additive mask [rows, 1, 1, slots]; kept for the other layers."""
        if window not in self._masks:
            slots = len(self.blocks) // (self.high - self.low) * BLOCK
            self._masks[window] = _additive(self.lengths[:, None] - 1, slots, window, dtype)[:, None, None]
        return self._masks[window]


@dataclass(slots=True)
class Chunk:
    """Consecutive tokens of one context, rows `low` to `high`, of which the first has position `start`."""

    low: int
    high: int
    start: int
    blocks: Tensor
    _masks: dict[int | None, Tensor] = field(default_factory=dict[int | None, Tensor])

    @property
    def length(self) -> int:
        """KV length, the chunk's own tokens included."""
        return self.start + self.high - self.low

    def plain(self, window: int | None) -> bool:
        """Whether the chunk attends to itself only, and to all that is before: plain causal attention."""
        return self.start == 0 and (window is None or self.length <= window)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What the rows may not see, as an additive mask [1, 1, rows, length]; kept for the other layers."""
        if window not in self._masks:
            positions = torch.arange(self.start, self.length, device=self.blocks.device)[:, None]
            self._masks[window] = _additive(positions, self.length, window, dtype)[None, None]
        return self._masks[window]


@dataclass(slots=True)
class Layout:
    """The packed rows of a forward: first the decoding contexts, the longest first, then the chunks."""

    slots: Tensor
    groups: list[DecodeGroup]
    chunks: list[Chunk]


def decode_groups(
    tables: Sequence[NDArray[np.int64]], lengths: Sequence[int], device: torch.device
) -> list[DecodeGroup]:
    """Cut contexts, sorted by falling length, into groups that waste little on padding."""
    groups: list[DecodeGroup] = []
    low = 0
    while low < len(tables):
        columns, high = len(tables[low]), low + 1
        while high < len(tables) and len(tables[high]) * MAX_WASTE >= columns:
            high += 1
        padded = np.full((high - low, columns), PAD_BLOCK, dtype=np.int64)
        for row, table in enumerate(tables[low:high]):
            padded[row, : len(table)] = table
        blocks = torch.from_numpy(padded.reshape(-1)).to(device)
        groups.append(DecodeGroup(low, high, blocks, torch.tensor(lengths[low:high], device=device)))
        low = high
    return groups


def _additive(positions: Tensor, slots: int, window: int | None, dtype: torch.dtype) -> Tensor:
    columns = torch.arange(slots, device=positions.device)
    hidden = columns > positions
    if window is not None:
        hidden |= columns <= positions - window
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
