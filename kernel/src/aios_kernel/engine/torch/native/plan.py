"""Which rows attend together, and through which blocks, as the compiled attention wants to be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
_ZERO = np.zeros(1, dtype=np.int64)


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
    lengths = np.array([len(table) for table in tables], dtype=np.int64)
    flat, offsets = np.concatenate(tables), lengths.cumsum() - lengths
    n = len(single)
    units = units_of(single, flat[offsets[:n]], lengths[:n])
    if chunks:
        rows = np.array([rows for rows, _ in chunks], dtype=np.int64)
        ends = n + rows.cumsum()
        units = np.concatenate([units, np.stack([ends - rows, ends, lengths[n:]], axis=1)])
        offsets = np.repeat(offsets, [*[1] * n, *rows])
    return Plan(slots, positions, flat, offsets, units)


def units_of(tables: Sequence[Numbers], heads: Numbers, lengths: Numbers) -> Numbers:
    """Units of neighbours: rows that share their first block share all blocks that are common to every one of them."""
    bounds = np.concatenate([_ZERO[: len(tables)], (heads[1:] != heads[:-1]).nonzero()[0] + 1, [len(tables)]])
    units = np.empty((len(bounds) - 1, 3), dtype=np.int64)
    units[:, 0], units[:, 1] = bounds[:-1], bounds[1:]
    units[:, 2] = lengths if len(units) == len(tables) else lengths[bounds[:-1]]
    if len(units) < len(tables):
        for unit, (low, high, _) in enumerate(units.tolist()):
            for table in tables[low + 1 : high]:
                units[unit, 2] = _common(tables[low][: units[unit, 2]], table)
    return units


def _common(one: Numbers, other: Numbers) -> int:
    """How many numbers the two begin with together."""
    least = min(len(one), len(other))
    differ = np.flatnonzero(one[:least] != other[:least])
    return int(differ[0]) if len(differ) else least
