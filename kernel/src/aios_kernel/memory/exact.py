"""An exact index in RAM: a matrix a space."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import final

import numpy as np
import numpy.typing as npt

from aios_kernel.memory.index import Hit, Space, Vector, Vectors, similarities


@final
class _Matrix:
    """Vectors of one space in the first `len(ids)` rows; the rest is room to grow."""

    def __init__(self, dimensions: int) -> None:
        self.ids: list[str] = []
        self._row: dict[str, int] = {}
        self._rows: Vectors = np.zeros((8, dimensions), np.float32)

    def put(self, id: str, vector: Vector) -> None:
        row = self._row.setdefault(id, len(self.ids))
        if row == len(self.ids):
            self.ids.append(id)
            if row == len(self._rows):
                self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[row] = vector

    def remove(self, id: str) -> None:
        row = self._row.pop(id, None)
        if row is None:
            return
        last = self.ids.pop()
        if last != id:  # the last one moves into the gap
            self.ids[row] = last
            self._row[last] = row
            self._rows[row] = self._rows[len(self.ids)]

    def nearest(self, vector: Vector, k: int, allowed: Collection[str] | None) -> list[Hit]:
        if allowed is None:
            rows = np.arange(len(self.ids))
        else:
            rows = np.array([self._row[id] for id in allowed if id in self._row], np.intp)
        scores = similarities(self._rows[: len(self.ids)] if allowed is None else self._rows[rows], vector)
        return [Hit(self.ids[int(rows[at])], float(scores[at])) for at in _best(scores, k)]


def _best(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.intp]:
    """Places of the `k` highest scores, highest first."""
    if k < len(scores):
        top = np.argpartition(-scores, k)[:k]
        return top[np.argsort(-scores[top], kind="stable")]
    return np.argsort(-scores, kind="stable")


@final
class ExactIndex:
    """`VectorIndex` by brute force, nothing on disk; rebuilt from the rows at every start."""

    def __init__(self) -> None:
        self._spaces: dict[Space, _Matrix] = {}
        self._lock = threading.Lock()

    def add(self, space: Space, ids: Sequence[str], vectors: Vectors) -> None:
        """See `VectorIndex.add`."""
        with self._lock:
            matrix = self._spaces.setdefault(space, _Matrix(vectors.shape[1]))
            for id, vector in zip(ids, vectors, strict=True):
                matrix.put(id, vector)

    def search(self, space: Space, vector: Vector, k: int, allowed: Collection[str] | None = None) -> list[Hit]:
        """See `VectorIndex.search`."""
        with self._lock:
            matrix = self._spaces.get(space)
            return [] if matrix is None else matrix.nearest(vector, k, allowed)

    def delete(self, space: Space, ids: Sequence[str]) -> None:
        """See `VectorIndex.delete`."""
        with self._lock:
            matrix = self._spaces.get(space)
            if matrix is not None:
                for id in ids:
                    matrix.remove(id)

    def drop(self, space: Space) -> None:
        """See `VectorIndex.drop`."""
        with self._lock:
            self._spaces.pop(space, None)

    def count(self, space: Space) -> int:
        """See `VectorIndex.count`."""
        with self._lock:
            matrix = self._spaces.get(space)
            return 0 if matrix is None else len(matrix.ids)

    def close(self) -> None:
        """See `VectorIndex.close`."""
        self._spaces.clear()
