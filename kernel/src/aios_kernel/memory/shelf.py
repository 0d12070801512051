"""The notes of one space in RAM, as searches need them: words, vectors, ages, and who stands beside whom."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt

from aios_kernel.memory.column import Column
from aios_kernel.memory.index import Vector
from aios_kernel.memory.matrix import Matrix
from aios_kernel.memory.postings import Postings
from aios_kernel.memory.terms import Terms, unpack_all

Mask: TypeAlias = npt.NDArray[np.bool_]
"""One flag a slot."""
Numbers: TypeAlias = npt.NDArray[np.float32]

NONE: Final = -1
UNNAMED: Final = "\n"
"""Begins the name of a source that nobody named: a run, whose pauses part one conversation from the next."""
_PAUSE_S: Final = 1800.0
_NOTE_BYTES: Final = 400


class Entry(NamedTuple):
    """A note as a shelf takes it in; times in seconds since 1970.

    `source` names the conversation or document that the note is a piece of, None that it stands alone. `vector` is None
    while the note waits to be embedded by the present model; until then only its words find it.
    """

    seq: int
    id: str
    source: str | None
    time_s: float
    expires_s: float | None
    vector: Vector | None
    terms: Terms


class Stock(NamedTuple):
    """`Entry` of many notes, column by column; vectors and terms as they are stored."""

    seqs: list[int]
    ids: list[str]
    sources: list[str | None]
    times_s: list[float]
    expires_s: list[float | None]
    vectors: list[bytes | None]
    terms: list[bytes]


class Shape(NamedTuple):
    """What BM25 needs to know of all texts: how many, how long, how long on the average.

    Windows are notes with the ones just before and after them in their source.
    """

    notes: int
    mean: float
    windows: Numbers
    mean_window: float
    linked: bool
    """Whether any note has a neighbour."""
    sources: Numbers
    mean_source: float
    shared: int
    """How many sources there are; 0 if there are none that notes share, or only one."""


@final
class Shelf:
    """Slots in the order of writing. A changed note gets a new slot in the place of its old one among its neighbours.

    Args:
        with_vectors: False for a space whose vectors are searched elsewhere.
    """

    def __init__(self, *, with_vectors: bool = True) -> None:
        self.with_vectors = with_vectors
        self.ids: list[str] = []
        self.slot_of: dict[str, int] = {}
        self.newest = 0
        self.postings = Postings()
        self.matrix: Matrix | None = None  # until the first vector
        self._lengths = Column(np.float32)
        self._alive = Column(np.bool_)
        self._time = Column(np.float64)
        self._expires = Column(np.float64)
        self._source = Column(np.int64)
        self._before, self._after = Column(np.int64), Column(np.int64)
        self._sources: dict[str, int] = {}
        self._families: list[str | None] = []  # by source, its name as entries tell it
        self._parts: dict[str, tuple[int, float]] = {}  # of an unnamed source: the present part, when it last grew
        self._tail: dict[int, int] = {}  # source -> the slot of its newest note
        self._shape: Shape | None = None
        self._mortal = False

    def fill(self, stock: Stock) -> None:
        """Take in the notes of a whole space, oldest first; only while there are none."""
        count = len(stock.ids)
        self.ids = stock.ids
        self.slot_of = {id: slot for slot, id in enumerate(stock.ids)}
        self.newest = stock.seqs[-1] if stock.seqs else 0
        terms, sizes = unpack_all(stock.terms)
        self.postings.fill(terms, sizes)
        owner = np.repeat(np.arange(count), sizes)
        self._lengths.extend(np.bincount(owner, terms.counts, count).astype(np.float32))
        self._alive.extend(np.ones(count, np.bool_))
        self._time.extend(np.array(stock.times_s, np.float64))
        self._expires.extend(np.array([np.inf if at is None else at for at in stock.expires_s], np.float64))
        self._mortal = any(at is not None for at in stock.expires_s)
        self._fill_links(stock)
        if self.with_vectors:
            self._fill_vectors(stock.vectors)

    def _fill_links(self, stock: Stock) -> None:
        told = zip(stock.ids, stock.sources, stock.times_s, strict=True)
        sources = [self._number(id, source, time_s) for id, source, time_s in told]
        before, after = [NONE] * len(sources), [NONE] * len(sources)
        for slot, source in enumerate(sources):
            last = self._tail.get(source, NONE)
            if last != NONE:
                before[slot], after[last] = last, slot
            self._tail[source] = slot
        for column, values in ((self._source, sources), (self._before, before), (self._after, after)):
            column.extend(np.array(values, np.int64))

    def _fill_vectors(self, blobs: list[bytes | None]) -> None:
        first = next((blob for blob in blobs if blob is not None), None)
        if first is not None:
            nothing = bytes(len(first))
            numbers = np.frombuffer(b"".join(blob or nothing for blob in blobs), "<f4")
            self.matrix = Matrix(len(first) // 4)
            self.matrix.extend(numbers.reshape(len(blobs), -1).astype(np.float32, copy=False))

    def take(self, entry: Entry) -> bool:
        """Take in a note, new or changed; False if that is not possible and the shelf must be filled anew."""
        old = self.slot_of.get(entry.id)
        if old is None:
            if entry.seq <= self.newest:
                return False  # an old note has become one that is found: its place is not at the end
            source = self._number(entry.id, entry.source, entry.time_s)
            before, after = self._tail.get(source, NONE), NONE
        else:
            source = int(self._source.view[old])
            if self._families[source] != entry.source:
                return False
            before, after = int(self._before.view[old]), int(self._after.view[old])
            self._alive.view[old] = False
        self._append(entry, source, before, after)
        return True

    def revector(self, id: str, vector: Vector) -> None:
        """Give a note the vector that was made for it; an unknown id is no error."""
        slot = self.slot_of.get(id)
        if slot is not None and self.with_vectors:
            self._matrix_for(vector).replace(slot, vector)

    def remove(self, id: str) -> None:
        """Forget a note; an unknown id is no error."""
        slot = self.slot_of.pop(id, None)
        if slot is None:
            return
        self._alive.view[slot] = False
        before, after = int(self._before.view[slot]), int(self._after.view[slot])
        if before != NONE:
            self._after.view[before] = after
        if after != NONE:
            self._before.view[after] = before
        elif before != NONE:
            self._tail[int(self._source.view[slot])] = before
        else:
            self._tail.pop(int(self._source.view[slot]), None)
        self._shape = None

    @property
    def worn(self) -> bool:
        """Whether so many notes were changed or removed that the shelf should be filled anew."""
        return len(self.ids) > 2 * len(self.slot_of) + 1000

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return len(self.ids) * (_NOTE_BYTES + (4 * self.matrix.dimensions if self.matrix else 0))

    @property
    def lengths(self) -> Numbers:
        """Words of each note."""
        return self._lengths.view

    @property
    def time_s(self) -> npt.NDArray[np.float64]:
        """When each note was made, seconds since 1970."""
        return self._time.view

    @property
    def source(self) -> npt.NDArray[np.int64]:
        """The number of each note's source."""
        return self._source.view

    @property
    def before(self) -> npt.NDArray[np.int64]:
        """The slot of the note before each one in its source, or `NONE`."""
        return self._before.view

    @property
    def after(self) -> npt.NDArray[np.int64]:
        """The slot of the note after each one in its source, or `NONE`."""
        return self._after.view

    @property
    def alive(self) -> Mask:
        """Which slots have a note."""
        return self._alive.view

    def eligible(self, allowed: Collection[str] | None, now_s: float) -> Mask:
        """Which slots have a note that has not expired and, if ids are given, is among these."""
        eligible = self._alive.view.copy()
        if allowed is not None:
            chosen = np.zeros(len(eligible), np.bool_)
            chosen[[self.slot_of[id] for id in allowed if id in self.slot_of]] = True
            eligible &= chosen
        if self._mortal:
            eligible &= self._expires.view > now_s
        return eligible

    @property
    def shape(self) -> Shape:
        """See `Shape`; computed once after a change."""
        if self._shape is None:
            self._shape = self._measured()
        return self._shape

    def _number(self, id: str, source: str | None, time_s: float) -> int:
        # An id begins with no null character: a note that stands alone shares its source's name with no other.
        name = f"\0{id}" if source is None else source
        if name.startswith(UNNAMED):
            part, last = self._parts.get(name, (0, time_s))
            part += abs(time_s - last) > _PAUSE_S
            self._parts[name] = part, time_s
            name = f"{name}{UNNAMED}{part}"
        number = self._sources.setdefault(name, len(self._sources))
        if number == len(self._families):
            self._families.append(source)
        return number

    def _append(self, entry: Entry, source: int, before: int, after: int) -> None:
        slot = len(self.ids)
        self.ids.append(entry.id)
        self.slot_of[entry.id] = slot
        self.newest = max(self.newest, entry.seq)
        self.postings.add(slot, entry.terms)
        self._lengths.append(entry.terms.counts.sum())
        self._alive.append(True)
        self._time.append(entry.time_s)
        self._expires.append(np.inf if entry.expires_s is None else entry.expires_s)
        self._mortal = self._mortal or entry.expires_s is not None
        self._source.append(source)
        self._before.append(before)
        self._after.append(after)
        if before != NONE:
            self._after.view[before] = slot
        if after == NONE:
            self._tail[source] = slot
        else:
            self._before.view[after] = slot
        if self.matrix is not None:
            self.matrix.extend(np.zeros((1, self.matrix.dimensions), np.float32))
        if entry.vector is not None and self.with_vectors:
            self._matrix_for(entry.vector).replace(slot, entry.vector)
        self._shape = None

    def _matrix_for(self, vector: Vector) -> Matrix:
        if self.matrix is None:
            self.matrix = Matrix(len(vector))
            self.matrix.extend(np.zeros((len(self.ids), len(vector)), np.float32))
        return self.matrix

    def _measured(self) -> Shape:
        alive, count = self._alive.view, len(self.slot_of)
        lengths = np.where(alive, self._lengths.view, 0)
        whole = float(lengths.sum())
        # NONE reads the last place: the first and the last note of a source must not gain by their shorter windows.
        padded = np.append(lengths, np.float32(whole / max(count, 1)))
        windows = (lengths + padded[self._before.view] + padded[self._after.view]) * alive
        sources = np.bincount(self._source.view, lengths).astype(np.float32)
        present = int(np.count_nonzero(np.bincount(self._source.view[alive], minlength=1)))
        linked = bool((alive & (self._before.view != NONE)).any())
        return Shape(
            count,
            whole / max(count, 1),
            windows,
            float(windows.sum()) / max(count, 1),
            linked,
            sources,
            whole / max(present, 1),
            present if linked and present > 1 else 0,
        )
