"""Words of the notes of a space, in RAM: BM25 of each note, of its neighbours, and of the session it is a piece of."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from typing import Final, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt

from aios_kernel.memory.words import Stemmer

Scores: TypeAlias = npt.NDArray[np.float32]
"""One number a slot."""
Places: TypeAlias = npt.NDArray[np.int64]

_K1: Final = 1.2
_B: Final = 0.75
_NONE: Final = -1


class Piece(NamedTuple):
    """A note's words; `source` names the session or document that it is a piece of; one of its own if none is."""

    seq: int
    id: str
    text: str
    source: str


class Words(NamedTuple):
    """How well notes fit a query by their words, one number a slot.

    `note`: the note itself; `window`: it and the notes just before and after it in its source, read as one text;
    `source`: all notes of its source, read as one text.
    """

    note: Scores
    window: Scores
    source: Scores


@final
class _Field:
    """BM25 over texts of which some may share notes; the score of a query is summed up term by term."""

    def __init__(self, lengths: Scores, texts: int) -> None:
        self.found = np.zeros(len(lengths), np.float32)
        self._texts = texts
        mean = max(float(lengths.sum()) / max(texts, 1), 1e-9)
        self._norm = _K1 * (1 - _B + _B * lengths / mean)
        self._counts = np.zeros(len(lengths), np.float32)

    def count(self, at: Places, counts: Scores) -> None:
        """Add the score of one term, which the texts `at` have `counts` times; a text may come more than once."""
        np.add.at(self._counts, at, counts)
        having = int(np.count_nonzero(self._counts))
        idf = math.log(1 + max(self._texts - having + 0.5, 0) / (having + 0.5))
        total = self._counts[at]
        self.found[at] += idf * total * (_K1 + 1) / (total + self._norm[at])  # once a text, however often it comes
        self._counts[at] = 0


@final
class Lexicon:
    """An inverted index over slots. A note keeps its slot; the slot of a removed one stays, without words."""

    def __init__(self, stemmer: Stemmer) -> None:
        self._stemmer = stemmer
        self.ids: list[str] = []
        self.slot_of: dict[str, int] = {}
        self.newest = 0
        self._postings: dict[str, tuple[array[int], array[float]]] = {}  # term -> slots, counts
        self._terms: list[list[str]] = []
        self._total = 0  # words of all notes
        self._lengths = array("f")
        self._alive = array("b")
        self._sources: dict[str, int] = {}
        self._source = array("q")
        self._tail: dict[int, int] = {}  # source -> the slot of its newest note
        self._before = array("q")
        self._after = array("q")

    def take(self, piece: Piece) -> bool:
        """Take in a note, new or changed; False if that is not possible and the lexicon must be made anew."""
        slot = self.slot_of.get(piece.id)
        if slot is not None:
            if self._sources.get(piece.source) != self._source[slot]:
                return False
            self._unlist(slot)
            self._list(slot, piece.text)
            return True
        if piece.seq <= self.newest:
            return False  # an old note got a vector: its place among its neighbours is not at the end
        self._append(piece)
        return True

    def remove(self, id: str) -> None:
        """Forget a note; an unknown id is no error."""
        slot = self.slot_of.pop(id, None)
        if slot is None:
            return
        self._unlist(slot)
        self._alive[slot] = 0
        before, after = self._before[slot], self._after[slot]
        if before != _NONE:
            self._after[before] = after
        if after != _NONE:
            self._before[after] = before
        else:
            self._tail[self._source[slot]] = before
        self._before[slot] = self._after[slot] = _NONE

    def scores(self, query: str) -> Words:
        """BM25 of a query for every slot, with Robertson's idf kept above 0 (Lucene's form)."""
        lengths = np.frombuffer(self._lengths, np.float32)
        source = np.frombuffer(self._source, np.int64)
        before, after = np.frombuffer(self._before, np.int64), np.frombuffer(self._after, np.int64)
        padded = np.append(lengths, np.float32(0))  # _NONE reads the last place
        notes = _Field(lengths, len(self.slot_of))
        windows = _Field(lengths + padded[before] + padded[after], len(self.slot_of))
        sources = _Field(np.bincount(source, lengths).astype(np.float32), len(self._sources))
        for term in dict.fromkeys(self._stemmer.terms(query)):
            if term in self._postings:
                slots = np.frombuffer(self._postings[term][0], np.int64)
                counts = np.frombuffer(self._postings[term][1], np.float32)
                notes.count(slots, counts)
                around = np.concatenate([slots, before[slots], after[slots]])
                known = around != _NONE
                windows.count(around[known], np.tile(counts, 3)[known])
                sources.count(source[slots], counts)
        # One source alone says nothing about which of its notes is meant.
        of_source = sources.found[source] if len(self._sources) > 1 else np.zeros_like(lengths)
        return Words(notes.found, windows.found, of_source)

    def alive(self) -> npt.NDArray[np.bool_]:
        """Which slots have a note."""
        return np.frombuffer(self._alive, np.int8) > 0

    def _append(self, piece: Piece) -> None:
        slot = len(self.ids)
        source = self._sources.setdefault(piece.source, len(self._sources))
        before = self._tail.get(source, _NONE)
        if before != _NONE:
            self._after[before] = slot
        self._tail[source] = slot
        self.newest = piece.seq
        self.ids.append(piece.id)
        self.slot_of[piece.id] = slot
        self._source.append(source)
        self._before.append(before)
        self._after.append(_NONE)
        self._lengths.append(0)
        self._alive.append(1)
        self._terms.append([])
        self._list(slot, piece.text)

    def _list(self, slot: int, text: str) -> None:
        counted = Counter(self._stemmer.terms(text))
        for term, count in counted.items():
            slots, counts = self._postings.setdefault(term, (array("q"), array("f")))
            slots.append(slot)
            counts.append(count)
        self._terms[slot] = list(counted)
        self._lengths[slot] = counted.total()
        self._total += counted.total()

    def _unlist(self, slot: int) -> None:
        for term in self._terms[slot]:
            slots, counts = self._postings[term]
            at = slots.index(slot)
            slots.pop(at)
            counts.pop(at)
            if not slots:
                del self._postings[term]
        self._terms[slot] = []
        self._total -= round(self._lengths[slot])
        self._lengths[slot] = 0
