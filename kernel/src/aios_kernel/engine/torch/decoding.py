"""The rows of contexts that decode together step after step: of their layout only what has changed is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.native.plan import Plan, units_of
from aios_kernel.engine.torch.prefix import BLOCK

_SPARE = 16
"""Blocks that a table has room for beyond what it holds."""


class DecodingRows:
    """What the compiled attention is told of contexts with one row each, kept from step to step.

    It stays true while tables only grow at their ends: then blocks are put into the room behind them. Other contexts,
    or a table that was changed otherwise, have everything laid out anew.

    Attributes:
        order: places in the step's plan in the order of the rows: contexts that begin alike are neighbours.
    """

    def __init__(self) -> None:
        self.order: list[int] = []
        self._asked: list[TorchContext] = []
        self._rows: list[TorchContext] = []
        self._tails: list[int] = []
        self._lengths: list[int] = []
        self._tables = np.zeros((0, _SPARE), dtype=np.int64)
        self._offsets = self._units = np.zeros(0, dtype=np.int64)

    def forget(self) -> None:
        """Nothing is known of the last step any longer: blocks may be elsewhere."""
        self._asked, self._rows = [], []

    def lay(self, asked: list[TorchContext]) -> tuple[list[int], Plan]:
        """Lay out the contexts of a step, whose blocks are in their tables already.

        Returns:
            The token that each row computes, and the layout.
        """
        if asked != self._asked or not self._grown():
            self._lay_anew(asked)
        rows = self._rows
        positions = np.array([context.computed for context in rows], dtype=np.int64)
        slots = np.array(self._tails, dtype=np.int64) * BLOCK + positions % BLOCK
        ids = [context.tokens[-1] for context in rows]
        return ids, Plan(slots, positions, self._tables, self._offsets, self._units)

    def _grown(self) -> bool:
        """Write the blocks that were put behind tables; False if more than that has changed, or room is short."""
        tails = [context.tail for context in self._rows]
        if tails == self._tails:
            return True
        room = self._tables.shape[1]
        for row, (context, before, tail) in enumerate(zip(self._rows, self._tails, tails, strict=True)):
            if before == tail:
                continue
            if context.n_blocks != self._lengths[row] + 1 or context.n_blocks > room:
                return False
            self._tables[row, context.n_blocks - 1] = tail
            self._lengths[row] += 1
        self._tails = tails
        return True

    def _lay_anew(self, asked: Sequence[TorchContext]) -> None:
        self._asked = [*asked]
        self.order = sorted(range(len(asked)), key=lambda place: asked[place].head)
        rows = self._rows = [asked[place] for place in self.order]
        self._tails = [context.tail for context in rows]
        self._lengths = [context.n_blocks for context in rows]
        self._tables = np.zeros((len(rows), max(self._lengths) + _SPARE), dtype=np.int64)
        for row, context in enumerate(rows):
            self._tables[row, : context.n_blocks] = context.table
        self._offsets = np.arange(len(rows)) * self._tables.shape[1]
        heads, lengths = self._tables[:, 0], np.array(self._lengths, dtype=np.int64)
        self._units = units_of([context.table for context in rows], heads, lengths)
