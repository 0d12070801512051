"""The values of a dict as a sequence: to show thousands of rows costs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

Row = TypeVar("Row")


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
