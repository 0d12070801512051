"""Which cells of the KV buffer are used, by contexts that live and by what is kept of others.

llama.cpp keeps such books itself, but does not show them. These cells have other numbers than its own; there are as
many of them, and each comes free when the last sequence that shares it goes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Cells:
    """References on `n` cells.

    Attributes:
        free: cells that no context uses.
        empty: cells that are not kept either.
    """

    def __init__(self, n: int) -> None:
        self.free = n
        self._used: NDArray[np.int32] = np.zeros(n, dtype=np.int32)
        self._kept: NDArray[np.int32] = np.zeros(n, dtype=np.int32)
        self._empty = [*range(n - 1, -1, -1)]

    @property
    def empty(self) -> int:
        """Cells that are neither used nor kept."""
        return len(self._empty)

    def take(self, n: int) -> list[int]:
        """Cells for one context; there are as many that are empty."""
        taken = [self._empty.pop() for _ in range(n)]
        self._used[taken] = 1
        self.free -= n
        return taken

    def use(self, cells: Sequence[int]) -> None:
        """One more context uses these."""
        index = np.array(cells, dtype=np.int64)
        self.free -= int((self._used[index] == 0).sum())
        self._used[index] += 1

    def would_use(self, cells: Sequence[int]) -> int:
        """How many of these no context uses."""
        return int((self._used[np.array(cells, dtype=np.int64)] == 0).sum())

    def leave(self, cells: Sequence[int]) -> None:
        """A context does not use these any more."""
        index = np.array(cells, dtype=np.int64)
        self._used[index] -= 1
        self.free += int((self._used[index] == 0).sum())
        self._collect(index)

    def keep(self, cells: Sequence[int]) -> None:
        """They are kept for contexts to come."""
        self._kept[np.array(cells, dtype=np.int64)] += 1

    def drop(self, cells: Sequence[int]) -> None:
        """They are kept no longer."""
        index = np.array(cells, dtype=np.int64)
        self._kept[index] -= 1
        self._collect(index)

    def _collect(self, index: NDArray[np.int64]) -> None:
        self._empty.extend(index[(self._used[index] == 0) & (self._kept[index] == 0)].tolist())
