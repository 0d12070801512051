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
_BLOCK: Final = 16_384
"""So many codes are compared at a time, and..."""
_ROWS: Final = 256
"""...so many vectors: what lies in between stays in the CPU's cache, and is not paged in anew for each search."""


@final
class Matrix:
    """Unit vectors, float32; a slot without one has zeros. For one thread.

    A vector's code is the sign of each of its numbers. The bits in which two codes differ grow with the angle between
    the vectors, and are counted for 100,000 notes in about a millisecond: 48 bytes a note instead of 1,536.
    """

    def __init__(self, dimensions: int) -> None:
        self._rows = Column(np.float32, width=dimensions)
        self._codes = Column(np.uint64, width=-(-dimensions // _WORD))
        self._by_word = self._codes.view.T.copy()
        self._scratch: Vectors | None = None

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
        if slots is None:
            return similarities(rows, vector)
        if self._scratch is None:
            self._scratch = np.empty((_ROWS, self.dimensions), np.float32)
        found = np.empty(len(slots), np.float32)
        for start in range(0, len(slots), _ROWS):
            some = slots[start : start + _ROWS]
            # With mode="clip" it writes straight into `out`; every slot is there.
            chosen = np.take(rows, some, axis=0, out=self._scratch[: len(some)], mode="clip")
            found[start : start + _ROWS] = similarities(chosen, vector)
        return found

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
        differing, count = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint8)
        for start in range(0, turned, _BLOCK):
            end = min(turned, start + _BLOCK)
            some, few = differing[: end - start], count[: end - start]
            for word, bits in zip(self._by_word, wanted, strict=True):  # over many notes at once, not by note
                np.bitwise_xor(word[start:end], bits, out=some)
                np.bitwise_count(some, out=few)
                total[start:end] += few
        total[turned:] = np.bitwise_count(codes[turned:] ^ wanted).sum(axis=1, dtype=np.uint16)
        return total


def _codes(vectors: Vectors) -> npt.NDArray[np.uint64]:
    bits = np.packbits(vectors > 0, axis=1)
    short = -bits.shape[1] % (_WORD // 8)
    return np.ascontiguousarray(np.pad(bits, ((0, 0), (0, short)))).view(np.uint64)
