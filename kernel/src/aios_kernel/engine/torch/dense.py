"""Gathered KV of contexts that decode together, kept from step to step.

Attention reads a group's blocks through a gathered copy. While the same contexts decode, step after step, that copy
only grows by their new tokens: gathering it again would read the whole KV in every layer of every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aios_kernel.engine.torch.blocks import PAD_BLOCK
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.kv import KvMemory
from aios_kernel.engine.torch.prefix import BLOCK

_ROOM = 4
"""Blocks of padding behind the longest context: the copy is made anew when they are full."""
BUDGET_BYTES = 512 << 20
"""Memory that all copies together may take, beside the pool; a group beyond it is gathered in every step."""


class DenseKv:
    """The KV of some contexts, in rows of `slots` tokens: [rows * slots, heads, dim] a layer.

    A layer is gathered from the pool at its first use, and from then on written like the pool itself.
    """

    def __init__(self, contexts: Sequence[TorchContext], device: torch.device) -> None:
        columns = contexts[0].n_blocks + _ROOM
        self.contexts = list(contexts)
        self.slots = columns * BLOCK
        self._blocks = padded_tables(contexts, columns).to(device)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._next: list[int] = []

    @property
    def used(self) -> int:
        """Tokens of the longest row, the step's own included: what lies behind is padding that nobody reads."""
        return max(self._next) - 1

    def serves(self, lengths: Sequence[int]) -> bool:
        """Whether the contexts have grown by one token each since the last step, and still fit."""
        return max(lengths) <= self.slots and list(lengths) == self._next

    def advance(self, lengths: Sequence[int]) -> None:
        """Note the KV lengths of the step that is about to run."""
        self._next = [length + 1 for length in lengths]

    def update(self, memory: KvMemory, layer: int, at: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add each row's new token, which the pool holds already; give keys and values [rows, heads, used, dim]."""
        if layer in self._layers:
            keys, values = self._layers[layer]
            keys.index_copy_(0, at, key.transpose(0, 1))
            values.index_copy_(0, at, value.transpose(0, 1))
        else:
            keys, values = self._layers[layer] = memory.copy_out(layer, self._blocks)
        rows = len(self.contexts)
        return (
            keys.view(rows, self.slots, *keys.shape[1:])[:, : self.used].transpose(1, 2),
            values.view(rows, self.slots, *values.shape[1:])[:, : self.used].transpose(1, 2),
        )


def padded_tables(contexts: Sequence[TorchContext], columns: int) -> Tensor:
    """The contexts' block tables in one, row after row, padded with the zero block: [len(contexts) * columns]."""
    padded = np.full((len(contexts), columns), PAD_BLOCK, dtype=np.int64)
    for row, context in enumerate(contexts):
        padded[row, : context.n_blocks] = context.table
    return torch.from_numpy(padded.reshape(-1))


@dataclass(slots=True)
class _Seen:
    contexts: list[TorchContext]
    dense: DenseKv | None = None


class DenseCache:
    """Remembers the groups of the last step. A copy is made when a group is seen in two steps in a row."""

    def __init__(self, token_bytes: int, budget_bytes: int = BUDGET_BYTES) -> None:
        self._token_bytes = token_bytes
        self._budget = budget_bytes
        self._last: dict[tuple[int, ...], _Seen] = {}
        self._now: dict[tuple[int, ...], _Seen] = {}
        self._used = 0

    def begin(self) -> None:
        """Start a step; what the step before did not use is dropped."""
        self._last, self._now, self._used = self._now, {}, 0

    def clear(self) -> None:
        """Forget everything, as after a step that failed midway."""
        self._last, self._now = {}, {}

    def find(self, contexts: Sequence[TorchContext], lengths: Sequence[int], device: torch.device) -> DenseKv | None:
        """The copy for a group of contexts, the longest first, whose KV lengths after this step are given."""
        key = tuple(map(id, contexts))
        seen = self._last.get(key)
        # The entry holds its contexts, so that an id cannot come to mean another one.
        entry = self._now[key] = _Seen(list(contexts))
        if seen is None:
            return None
        dense = seen.dense
        if dense is None or not dense.serves(lengths):
            dense = DenseKv(contexts, device)
        size = dense.slots * len(contexts) * self._token_bytes
        if self._used + size > self._budget:
            return None
        self._used += size
        dense.advance(lengths)
        entry.dense = dense
        return dense
