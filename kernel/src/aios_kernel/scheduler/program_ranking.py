"""Names in order of a key, and lengths in order of size, kept up to date one by one."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import TypeAlias

Key: TypeAlias = tuple[float, ...]


class Ranking:
    """Names by key, smallest first. A change takes O(log n) and a move of memory."""

    def __init__(self) -> None:
        self._order: list[tuple[Key, str]] = []
        self._keys: dict[str, Key] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def __iter__(self) -> Iterator[str]:
        """Smallest key first; not while it changes."""
        return (name for _, name in self._order)

    def __reversed__(self) -> Iterator[str]:
        """Largest key first; not while it changes."""
        return (name for _, name in reversed(self._order))

    def put(self, name: str, key: Key) -> None:
        """Add a name, or give it another key."""
        self.discard(name)
        self._keys[name] = key
        insort(self._order, (key, name))

    def discard(self, name: str) -> None:
        """Take a name out, if it is there."""
        key = self._keys.pop(name, None)
        if key is not None:
            del self._order[bisect_left(self._order, (key, name))]

    def key(self, name: str) -> Key:
        """Of a name that is there."""
        return self._keys[name]

    def last(self) -> str | None:
        """The name with the largest key."""
        return self._order[-1][1] if self._order else None


class Lengths:
    """Lengths of contexts, to tell how much they are short of a common final length. Counts are in tokens."""

    def __init__(self) -> None:
        self._sorted: list[int] = []
        self._final = 0.0
        self._below = 0
        self._sum = 0
        """Of those below `_final`, and how many they are."""

    def add(self, length: int) -> None:
        """One more."""
        insort(self._sorted, length)
        if length < self._final:
            self._below += 1
            self._sum += length

    def remove(self, length: int) -> None:
        """One less, which was added."""
        del self._sorted[bisect_left(self._sorted, length)]
        if length < self._final:
            self._below -= 1
            self._sum -= length

    def short_of(self, final: float) -> float:
        """Tokens by which all together grow when each gets so long.

        For another `final` than last time those between the two are walked.
        """
        if final != self._final:
            self._final, below = final, bisect_left(self._sorted, final)
            if below > self._below:
                self._sum += sum(self._sorted[self._below : below])
            else:
                self._sum -= sum(self._sorted[below : self._below])
            self._below = below
        return self._below * final - self._sum
