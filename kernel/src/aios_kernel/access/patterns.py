"""Rules by the resources that they name, in dictionaries: a look-up costs the same with ten rules and ten thousand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar, final

T = TypeVar("T")


@final
class Patterns(Generic[T]):
    """What is said about names. A pattern is a name, which covers itself and all below it, or ends in `*`.

    `tool/mail` covers `tool/mail` and `tool/mail/send`, not `tool/mailer`; `tool/mail*` covers everything that begins
    with `tool/mail`. There is no other wildcard. Of equal patterns the first counts.
    """

    __slots__ = ("_lengths", "_names", "_stars")

    def __init__(self, entries: Iterable[tuple[str, T]] = ()) -> None:
        self._names: dict[str, T] = {}
        self._stars: dict[str, T] = {}
        for pattern, value in entries:
            (self._stars if pattern.endswith("*") else self._names).setdefault(pattern.removesuffix("*"), value)
        self._lengths = tuple(sorted({len(star) for star in self._stars}))

    def first(self, names: Sequence[str]) -> T | None:
        """What is said about `names[0]`; `names` are itself and all that contain it (`covering`)."""
        for name in names:
            if name in self._names:
                return self._names[name]
        if self._lengths:
            whole, size = names[0], len(names[0])
            for length in self._lengths:
                if length > size:
                    break
                if (found := self._stars.get(whole[:length])) is not None:
                    return found
        return None

    def all(self, names: Sequence[str]) -> list[T]:
        """All that is said about `names[0]`."""
        found = [self._names[name] for name in names if name in self._names]
        starts = (names[0][:length] for length in self._lengths if length <= len(names[0]))
        return found + [self._stars[start] for start in starts if start in self._stars]

    def __bool__(self) -> bool:
        return bool(self._names or self._stars)
