"""Host memory for snapshots, reused: touching fresh pages costs more than the copy into them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SPARE_BYTES = 256 << 20
"""Pieces that nobody uses are kept up to this size in all."""


class HostMemory:
    """Pieces of memory in powers of two, of which those given back are handed out again.

    Args:
        spare_bytes: of pieces that nobody uses, kept at most.
        pinned: memory that a device copies from and to by itself; torch keeps what is given back of it.
    """

    def __init__(self, spare_bytes: int = SPARE_BYTES, *, pinned: bool = False) -> None:
        self._limit = spare_bytes
        self._pinned = pinned
        self._spare: dict[int, deque[NDArray[np.uint8]]] = {}

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """A piece of at least `nbytes`, its content undefined. Raises MemoryError."""
        size = 1 << max(0, nbytes - 1).bit_length()
        try:
            return self._spare[size].pop()
        except LookupError:
            if self._pinned:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
            return np.empty(size, dtype=np.uint8)  # large ones get huge pages

    def give_back(self, piece: NDArray[np.uint8]) -> None:
        """Take a piece that nobody reads or writes any longer. Needs no lock: a finaliser may call it anywhere."""
        if piece.nbytes + sum(size * len(pieces) for size, pieces in [*self._spare.items()]) <= self._limit:
            self._spare.setdefault(piece.nbytes, deque()).append(piece)


def tensors_in(piece: NDArray[np.uint8], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    """Tensors of these shapes, one behind the other in a piece of memory."""
    sizes = [math.prod(shape) for shape in shapes]
    raw = torch.from_numpy(piece)[: sum(sizes) * dtype.itemsize].view(dtype)
    return [part.view(shape) for part, shape in zip(raw.split(sizes), shapes, strict=True)]


def bytes_of(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> int:
    """Size of tensors of these shapes."""
    return sum(math.prod(shape) for shape in shapes) * dtype.itemsize
