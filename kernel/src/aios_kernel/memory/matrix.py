"""The vectors of a shelf by slot. Few are compared one by one; of many, their signs tell which are worth it."""

from __future__ import annotations

from typing import Final, final

import numpy as np
import numpy.typing as npt

from aios_kernel.memory.column import Column
from aios_kernel.memory.index import Vector, Vectors, similarities
from aios_kernel.memory.postings import Slots

_WORD: Final = 64
_TAIL: Final = 1024


@final
class Matrix:
    """Unit vectors, float32; a slot without one has zeros.

    A vector's code is the sign of each of its numbers. The bits in which two codes differ grow with the angle between
    the vectors, and are counted for 100,000 notes in about a millisecond: 48 bytes a note instead of 1,536.
    """

    def __init__(self, dimensions: int) -> None:
        self._rows = Column(np.float32, width=dimensions)
        self._codes = Column(np.uint64, width=-(-dimensions // _WORD))
        self._by_word = self._codes.view.T.copy()

    @property
    def dimensions(self) -> int:
        """Numbers a vector."""
        return self._rows.view.shape[1]

    def extend(self, vectors: Vectors) -> None:
        """Give the next slots their vectors; shape [n, dimensions]."""
        self._rows.extend(vectors)
        self._codes.extend(_codes(vectors))

    def replace(self, slot: int, vector: Vector) -> None:
        """Give a slot another vector."""
        self._rows.view[slot] = vector
        self._codes.view[slot] = code = _codes(vector[None])[0]
        if slot < self._by_word.shape[1]:
            self._by_word[:, slot] = code

    def cosines(self, vector: Vector, slots: Slots | None = None) -> Vector:
        """The cosines of some slots, or of all, with a vector."""
        rows = self._rows.view
        return similarities(rows if slots is None else rows[slots], vector)

    def likely(self, vector: Vector, wanted: int, eligible: npt.NDArray[np.bool_]) -> Slots:
        """About `wanted` eligible slots, the nearest among them but for a few; more if many are equally near."""
        far = self._differing(vector)
        far[~eligible] = _WORD * self._codes.view.shape[1] + 1
        within = np.cumsum(np.bincount(far))
        return np.flatnonzero(far <= np.searchsorted(within, wanted))

    def _differing(self, vector: Vector) -> npt.NDArray[np.uint16]:
        """In how many bits each code differs from a vector's."""
        codes, wanted = self._codes.view, _codes(vector[None])[0]
        if len(codes) - self._by_word.shape[1] > _TAIL + self._by_word.shape[1] // 8:
            self._by_word = np.ascontiguousarray(codes.T)
        turned = self._by_word.shape[1]
        total = np.empty(len(codes), np.uint16)
        total[:turned] = 0
        for word, bits in zip(self._by_word, wanted, strict=True):  # over all notes at once: far faster than by note
            total[:turned] += np.bitwise_count(word ^ bits)
        total[turned:] = np.bitwise_count(codes[turned:] ^ wanted).sum(axis=1, dtype=np.uint16)
        return total


def _codes(vectors: Vectors) -> npt.NDArray[np.uint64]:
    bits = np.packbits(vectors > 0, axis=1)
    short = -bits.shape[1] % (_WORD // 8)
    return np.ascontiguousarray(np.pad(bits, ((0, 0), (0, short)))).view(np.uint64)
