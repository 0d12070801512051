"""Who stands beside whom: the notes of a conversation or document, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

import numpy as np
import numpy.typing as npt

from aios_kernel.memory.column import Column

NONE: Final = -1
UNNAMED: Final = "\n"
"""Begins the name of a source that nobody named: a run, whose pauses part one conversation from the next."""
_PAUSE_S: Final = 1800.0

Slots = npt.NDArray[np.int64]


@final
class Links:
    """The source of each slot of a shelf, and the slots just before and after it there."""

    def __init__(self) -> None:
        self._source = Column(np.int64)
        self._before, self._after = Column(np.int64), Column(np.int64)
        self._numbers: dict[str, int] = {}
        self._families: list[str | None] = []  # by source, its name as notes tell it
        self._parts: dict[str, tuple[int, float]] = {}  # of an unnamed source: the present part, when it last grew
        self._tail: dict[int, int] = {}  # source -> the slot of its newest note

    @property
    def source(self) -> Slots:
        """The number of each slot's source."""
        return self._source.view

    @property
    def before(self) -> Slots:
        """The slot before each one in its source, or `NONE`."""
        return self._before.view

    @property
    def after(self) -> Slots:
        """The slot after each one in its source, or `NONE`."""
        return self._after.view

    def extend(self, ids: Sequence[str], sources: Sequence[str | None], times_s: Sequence[float]) -> None:
        """Give the next slots their places, each at the end of its source."""
        start = len(self._source)
        numbers = [self._number(*told) for told in zip(ids, sources, times_s, strict=True)]
        before, after = [NONE] * len(numbers), [NONE] * len(numbers)
        for slot, number in enumerate(numbers, start):
            last = self._tail.get(number, NONE)
            before[slot - start] = last
            if last >= start:
                after[last - start] = slot
            elif last != NONE:
                self._after.view[last] = slot
            self._tail[number] = slot
        for column, values in ((self._source, numbers), (self._before, before), (self._after, after)):
            column.extend(np.array(values, np.int64))

    def follow(self, old: int, source: str | None) -> bool:
        """Give the next slot the place of an old one, whose note was changed; False if its source was changed too."""
        number = int(self._source.view[old])
        if self._families[number] != source:
            return False
        slot, before, after = len(self._source), int(self._before.view[old]), int(self._after.view[old])
        for column, value in ((self._source, number), (self._before, before), (self._after, after)):
            column.append(value)
        if before != NONE:
            self._after.view[before] = slot
        if after != NONE:
            self._before.view[after] = slot
        else:
            self._tail[number] = slot
        return True

    def remove(self, slot: int) -> None:
        """Join the neighbours of a slot."""
        before, after = int(self._before.view[slot]), int(self._after.view[slot])
        if before != NONE:
            self._after.view[before] = after
        if after != NONE:
            self._before.view[after] = before
        elif before != NONE:
            self._tail[int(self._source.view[slot])] = before
        else:
            self._tail.pop(int(self._source.view[slot]), None)

    def _number(self, id: str, source: str | None, time_s: float) -> int:
        # An id begins with no null character: a note that stands alone shares its source's name with no other.
        name = f"\0{id}" if source is None else source
        if name.startswith(UNNAMED):
            part, last = self._parts.get(name, (0, time_s))
            part += abs(time_s - last) > _PAUSE_S
            self._parts[name] = part, time_s
            name = f"{name}{UNNAMED}{part}"
        number = self._numbers.setdefault(name, len(self._numbers))
        if number == len(self._families):
            self._families.append(source)
        return number
