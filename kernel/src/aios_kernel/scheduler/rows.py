"""The values of a dict as a sequence: to show thousands of rows costs nothing, nor to find those that have changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

Row = TypeVar("Row")
_REMEMBERED = 1024
"""Changes remembered at least."""


class Rows(Sequence[Row]):
    """Reads a dict that goes on changing: to be looked at within a decision.

    Whoever looks longer, or from another thread, copies it, `[*rows]`: no Python code of others runs meanwhile.
    """

    __slots__ = ("_rows",)

    def __init__(self, rows: dict[Any, Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __reversed__(self) -> Iterator[Row]:
        return reversed(self._rows.values())

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return [*self._rows.values()][index]


class Journal(Rows[Row]):
    """Rows of which each reader can ask what has changed since it last looked.

    Attributes:
        mark: how many changes there have been.
    """

    __slots__ = ("_changed", "mark")

    def __init__(self, rows: dict[Any, Row]) -> None:
        super().__init__(rows)
        self._changed: list[Any] = []
        self.mark = 0

    def note(self, key: object) -> None:
        """The row of a key has come, changed or gone."""
        if len(self._changed) > 2 * len(self._rows) + _REMEMBERED:
            del self._changed[: len(self._changed) // 2]
        self._changed.append(key)
        self.mark += 1

    def since(self, mark: int) -> Sequence[Any] | None:
        """Keys of the rows that have changed since then, some more than once; None: it is not known any more."""
        count = self.mark - mark
        if count > len(self._changed):
            return None
        return self._changed[len(self._changed) - count :]

    def get(self, key: object) -> Row | None:
        """The row of a key."""
        return self._rows.get(key)
