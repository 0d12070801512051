"""BM25 of notes, of notes with their neighbours, and of the sources that they are pieces of."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from aios_kernel.memory.postings import Posting, Slots
from aios_kernel.memory.shelf import Numbers, Shelf
from aios_kernel.memory.terms import Keys

# Anserini's values for passages: a note is short, and a word that comes twice in it says little more.
_K1: Final = 0.9
_B: Final = 0.4
_MOST_TERMS: Final = 64
_ALL_TERMS_UP_TO: Final = 4_096
_RARE: Final = 1_000
_MOST: Final = 255
"""Occurrences in a note that are told apart: BM25 has long ceased to."""


class Said(NamedTuple):
    """How well some notes fit a query by their words, one number a note.

    `note`: the note itself; `window`: it and the notes just before and after it in its source, read as one text;
    `source`: all notes of its source, read as one text.
    """

    note: Numbers
    window: Numbers
    source: Numbers


class Asked(NamedTuple):
    """The terms of a query that a shelf knows, the rarest first, and how many of its notes have each."""

    postings: list[Posting]
    having: Numbers


def asked(shelf: Shelf, keys: Keys) -> Asked:
    """Look up the terms of a query.

    In a large shelf a term of every other note decides nothing and costs most: it is left out beside rarer ones.
    """
    found = shelf.postings.find(keys)
    whole = len(shelf.slot_of) == len(shelf.ids)  # nothing was changed or removed
    counted = [(len(one.slots) if whole else int(np.count_nonzero(shelf.alive[one.slots])), one) for one in found]
    counted = sorted((pair for pair in counted if pair[0]), key=lambda pair: pair[0])[:_MOST_TERMS]
    if len(shelf.ids) > _ALL_TERMS_UP_TO:
        half = len(shelf.slot_of) // 2
        counted = [pair for pair in counted if pair[0] <= half] or counted[:1]
    return Asked([posting for _, posting in counted], np.array([having for having, _ in counted], np.float32))


def best(shelf: Shelf, query: Asked, wanted: int, eligible: npt.NDArray[np.bool_]) -> Slots:
    """The `wanted` eligible notes that fit a query best by the rarer of its terms; fewer if fewer have any."""
    shape = shelf.shape
    found = np.zeros(len(shelf.ids), np.float32)
    for posting, having in zip(query.postings, query.having.tolist(), strict=True):
        if having > max(_RARE, shape.notes / 16) and found.any():
            break
        slots, counts = posting
        found[slots] += _saturated(counts, shelf.lengths[slots], shape.mean) * _idf(having, shape.notes)
    found[~eligible] = 0
    touched = np.flatnonzero(found > 0)
    if len(touched) <= wanted:
        return touched
    return np.sort(touched[np.argpartition(-found[touched], wanted)[:wanted]])


def fields(shelf: Shelf, query: Asked, slots: Slots) -> Said:
    """The scores of some notes for a query; Robertson's idf, kept above 0 (Lucene's form)."""
    shape, size = shelf.shape, len(shelf.ids)
    counts = np.zeros((len(query.postings), size + 1), np.uint8)  # NONE reads the last place
    for row, posting in zip(counts, query.postings, strict=True):
        row[posting.slots] = np.minimum(posting.counts, _MOST)
    own = counts[:, slots].astype(np.float32)
    note = _score(own, shelf.lengths[slots], shape.mean, query.having, shape.notes)
    window, source = note, np.zeros_like(note)
    if shape.linked:
        around = own + counts[:, shelf.before[slots]] + counts[:, shelf.after[slots]]
        # As if notes had their terms independently of their neighbours.
        having = (shape.notes * (1 - (1 - query.having / shape.notes) ** 3)).astype(np.float32)
        window = _score(around, shape.windows[slots], shape.mean_window, having, shape.notes)
    if shape.shared:
        source = _by_source(shelf, query)[shelf.source[slots]]
    return Said(note, window, source)


def _by_source(shelf: Shelf, query: Asked) -> Numbers:
    shape = shelf.shape
    counts = np.zeros((len(query.postings), len(shape.sources)), np.float32)
    for row, posting in zip(counts, query.postings, strict=True):
        said = posting.counts * shelf.alive[posting.slots]
        row[:] = np.bincount(shelf.source[posting.slots], said, len(row))
    having = np.count_nonzero(counts, axis=1).astype(np.float32)
    return _score(counts, shape.sources, shape.mean_source, having, shape.shared)


def _score(counts: Numbers, lengths: Numbers, mean: float, having: Numbers, texts: int) -> Numbers:
    if not len(counts):
        return np.zeros(len(lengths), np.float32)
    return (_saturated(counts, lengths, mean) * _idf(having, texts)[:, None]).sum(axis=0).astype(np.float32)


def _saturated(counts: Numbers, lengths: Numbers, mean: float) -> Numbers:
    norm = (_K1 * (1 - _B + _B / max(mean, 1e-9) * lengths)).astype(np.float32)
    return (counts * (_K1 + 1) / (counts + norm)).astype(np.float32)


def _idf(having: Numbers | float, texts: int) -> Numbers:
    return np.log1p((np.maximum(texts - having, 0) + np.float32(0.5)) / (having + np.float32(0.5))).astype(np.float32)
