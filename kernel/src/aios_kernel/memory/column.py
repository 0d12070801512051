"""An array that grows at its end."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import numpy.typing as npt


@final
class Column:
    """Numbers of one kind, or rows of them; appending costs a constant time on the average."""

    def __init__(self, dtype: npt.DTypeLike, *, width: int | None = None) -> None:
        self._data: npt.NDArray[Any] = np.zeros((16,) if width is None else (16, width), dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, value: Any) -> None:
        """Add one number, or one row."""
        if self._size == len(self._data):
            self._grow(self._size + 1)
        self._data[self._size] = value
        self._size += 1

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Add several."""
        end = self._size + len(values)
        if end > len(self._data):
            self._grow(end)
        self._data[self._size : end] = values
        self._size = end

    @property
    def view(self) -> npt.NDArray[Any]:
        """What was appended, shared with the column until it grows."""
        return self._data[: self._size]

    def _grow(self, least: int) -> None:
        bigger = np.zeros((max(least, self._size + self._size // 2), *self._data.shape[1:]), self._data.dtype)
        bigger[: self._size] = self._data[: self._size]
        self._data = bigger
