"""The notes of one space in RAM, as searches need them: words, vectors, ages, and who stands beside whom."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt

from aios_kernel.memory.column import Column
from aios_kernel.memory.index import Vector
from aios_kernel.memory.links import NONE, Links
from aios_kernel.memory.matrix import Matrix
from aios_kernel.memory.postings import Postings
from aios_kernel.memory.terms import Terms, unpack_all

Mask: TypeAlias = npt.NDArray[np.bool_]
"""One flag a slot."""
Numbers: TypeAlias = npt.NDArray[np.float32]

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
        self._links = Links()
        self._shape: Shape | None = None
        self._mortal = False

    def fill(self, stock: Stock) -> None:
        """Take in the notes of a whole space, oldest first; only while there are none."""
        terms, sizes = unpack_all(stock.terms)
        self.postings.fill(terms, sizes)
        count = len(stock.ids)
        owner = np.repeat(np.arange(count), sizes)
        lengths = np.bincount(owner, terms.counts, count).astype(np.float32)
        self.slot_of = {id: slot for slot, id in enumerate(stock.ids)}
        self._links.extend(stock.ids, stock.sources, stock.times_s)
        self._describe(stock.ids, lengths, stock.times_s, stock.expires_s)
        self.newest = stock.seqs[-1] if stock.seqs else 0
        if self.with_vectors:
            self._fill_vectors(stock.vectors)

    def _fill_vectors(self, blobs: list[bytes | None]) -> None:
        first = next((blob for blob in blobs if blob is not None), None)
        if first is not None:
            nothing = bytes(len(first))
            numbers = np.frombuffer(b"".join(blob or nothing for blob in blobs), "<f4")
            self.matrix = Matrix(len(first) // 4)
            self.matrix.extend(numbers.reshape(len(blobs), -1).astype(np.float32, copy=False))

    def take(self, entries: Iterable[Entry]) -> bool:
        """Take in notes, new or changed, in order; False if that is not possible and the shelf must be filled anew."""
        new: list[Entry] = []
        for entry in entries:
            old = self.slot_of.get(entry.id)
            if old is None:
                if entry.seq <= self.newest:
                    return False  # an old note has become one that is found: its place is not at the end
                self.newest = entry.seq
                self.slot_of[entry.id] = len(self.ids) + len(new)
                new.append(entry)
                continue
            self._append(new)
            new.clear()
            if not self._replace(old, entry):
                return False
        self._append(new)
        return True

    def revector(self, id: str, vector: Vector) -> None:
        """Give a note the vector that was made for it; an unknown id is no error."""
        slot = self.slot_of.get(id)
        if slot is not None and self.with_vectors:
            self._matrix_for(vector, len(self.ids)).replace(slot, vector)

    def remove(self, id: str) -> None:
        """Forget a note; an unknown id is no error."""
        slot = self.slot_of.pop(id, None)
        if slot is not None:
            self._alive.view[slot] = False
            self._links.remove(slot)
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
        return self._links.source

    @property
    def before(self) -> npt.NDArray[np.int64]:
        """The slot of the note before each one in its source, or `NONE`."""
        return self._links.before

    @property
    def after(self) -> npt.NDArray[np.int64]:
        """The slot of the note after each one in its source, or `NONE`."""
        return self._links.after

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

    def _append(self, entries: Sequence[Entry]) -> None:
        """Give new notes the next slots, all at once: one by one it would take ten times as long."""
        if not entries:
            return
        self._links.extend(*zip(*((entry.id, entry.source, entry.time_s) for entry in entries), strict=True))
        self._enter(entries)

    def _replace(self, old: int, entry: Entry) -> bool:
        if not self._links.follow(old, entry.source):
            return False
        self._alive.view[old] = False
        self.slot_of[entry.id] = len(self.ids)
        self.newest = max(self.newest, entry.seq)
        self._enter([entry])
        return True

    def _enter(self, entries: Sequence[Entry]) -> None:
        """Give the next slots everything of a note but its place beside others."""
        start = len(self.ids)
        for slot, entry in enumerate(entries, start):
            self.postings.add(slot, entry.terms)
        self._describe(
            [entry.id for entry in entries],
            np.array([entry.terms.counts.sum() for entry in entries], np.float32),
            [entry.time_s for entry in entries],
            [entry.expires_s for entry in entries],
        )
        vectors = [entry.vector if self.with_vectors else None for entry in entries]
        some = next((vector for vector in vectors if vector is not None), None)
        if some is not None or self.matrix is not None:
            matrix = self._matrix_for(some, start)
            nothing = np.zeros(matrix.dimensions, np.float32)
            matrix.extend(np.stack([nothing if vector is None else vector for vector in vectors]))
        self._shape = None

    def _describe(self, ids: list[str], lengths: Numbers, times_s: list[float], expires_s: list[float | None]) -> None:
        self.ids += ids
        self._lengths.extend(lengths)
        self._alive.extend(np.ones(len(ids), np.bool_))
        self._time.extend(np.array(times_s, np.float64))
        self._expires.extend(np.array([np.inf if at is None else at for at in expires_s], np.float64))
        self._mortal = self._mortal or any(at is not None for at in expires_s)

    def _matrix_for(self, vector: Vector | None, slots: int) -> Matrix:
        if self.matrix is None:
            assert vector is not None
            self.matrix = Matrix(len(vector))
            self.matrix.extend(np.zeros((slots, len(vector)), np.float32))
        return self.matrix

    def _measured(self) -> Shape:
        alive, count = self._alive.view, len(self.slot_of)
        lengths = np.where(alive, self._lengths.view, 0)
        whole = float(lengths.sum())
        # NONE reads the last place: the first and the last note of a source must not gain by their shorter windows.
        padded = np.append(lengths, np.float32(whole / max(count, 1)))
        windows = (lengths + padded[self._links.before] + padded[self._links.after]) * alive
        sources = np.bincount(self._links.source, lengths).astype(np.float32)
        present = int(np.count_nonzero(np.bincount(self._links.source[alive], minlength=1)))
        linked = bool((alive & (self._links.before != NONE)).any())
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
