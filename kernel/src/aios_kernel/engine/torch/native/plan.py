"""Which rows attend together, and through which blocks, as the compiled attention wants to be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """The packed rows of one forward.

    Attributes:
        slots: where each row's key and value are written, [rows].
        positions: of the rows in their contexts, [rows].
        tables: the contexts' block tables, one behind the other.
        offsets: where each row's table begins, [rows].
        units: rows that attend together: [units, 3], the first, the one behind the last, and how many blocks from the
            first of their tables on they share. What a row has beyond these it attends to alone.
    """

    slots: Numbers
    positions: Numbers
    tables: Numbers
    offsets: Numbers
    units: Numbers


def plan(single: Sequence[Numbers], chunks: Sequence[tuple[int, Numbers]], slots: Numbers, positions: Numbers) -> Plan:
    """Lay out rows.

    Args:
        single: block tables of contexts with one row each, those with a common prefix side by side.
        chunks: number of rows and block table of the contexts with several; their rows come behind.
        slots: see `Plan`.
        positions: see `Plan`.
    """
    tables = [*single, *(table for _, table in chunks)]
    counts = [1] * len(single) + [rows for rows, _ in chunks]
    begins = np.cumsum([0, *map(len, tables[:-1])], dtype=np.int64)
    units = _shared(single)
    row = len(single)
    for rows, table in chunks:
        units.append((row, row + rows, len(table)))
        row += rows
    return Plan(
        slots,
        positions,
        np.concatenate(tables),
        np.repeat(begins, counts),
        np.array(units, dtype=np.int64),
    )


def _shared(tables: Sequence[Numbers]) -> list[tuple[int, int, int]]:
    """Units of neighbours: rows that share their first block share all blocks that are common to every one of them."""
    units: list[tuple[int, int, int]] = []
    low = 0
    while low < len(tables):
        high = low + 1
        common = len(tables[low])
        while high < len(tables) and tables[high][0] == tables[low][0]:
            common = _common(tables[low][:common], tables[high])
            high += 1
        units.append((low, high, common))
        low = high
    return units


def _common(one: Numbers, other: Numbers) -> int:
    """How many numbers the two begin with together."""
    least = min(len(one), len(other))
    differ = np.flatnonzero(one[:least] != other[:least])
    return int(differ[0]) if len(differ) else least
