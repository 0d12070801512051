"""One ranking of a space's notes from their vectors, their words, and what stands beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from aios_kernel.memory import bm25
from aios_kernel.memory.index import Hit, Vector
from aios_kernel.memory.links import NONE
from aios_kernel.memory.postings import Slots
from aios_kernel.memory.shelf import Mask, Numbers, Shelf
from aios_kernel.memory.terms import Keys

_SMALL: Final = 2_000
"""Of so many notes each is looked at closely; of more..."""
_POOL: Final = 500
"""...so many for their vectors and so many for their words."""
_EXACT: Final = 8_000
"""Up to so many vectors are all compared; of more, the likely ones."""
_LIKELY: Final = 1_500
_RECENCY: Final = 1.0

WEIGHTS: Final = {
    "meaning": 0.5, "nearby": 0.35, "note": 0.1, "window": 0.25, "wide": 0.2, "source": 0.5, "speaker": 0.4,
}  # fmt: skip
"""Of the standard scores of each signal. Rounded from those that did best on LoCoMo conversations (docs/memory.md)."""
_CONTEXT: Final = ("nearby", "window", "wide", "source")
_FEW: Final = 20
"""Among so few notes, what stands beside a note counts half: the spread of a handful of numbers says little."""


class Question(NamedTuple):
    """What is looked for: its terms, who it names, its vector, how fast notes lose by age (None: not at all)."""

    keys: Keys
    speakers: Keys
    vector: Vector
    now_s: float
    half_life_s: float | None = None


def ranked(shelf: Shelf, question: Question, eligible: Mask, k: int, near: Sequence[Hit] | None = None) -> list[Hit]:
    """The `k` best eligible notes, best first, by a weighted sum of standard scores.

    Args:
        shelf: the notes of the space.
        question: what is looked for.
        eligible: the slots that may be given; the others still speak for their neighbours.
        k: how many.
        near: the nearest notes by an index, if the shelf has no vectors.
    """
    if not eligible.any():
        return []
    query = bm25.asked(shelf, question.keys)
    found = _cosines(shelf, question.vector, eligible, max(_LIKELY, k)) if near is None else _given(shelf, near)
    pool = _pool(shelf, query, found, eligible, k)
    total = np.zeros(len(pool), np.float32)
    for name, values in signals(shelf, question, query, found.cosines, pool).items():
        sure = len(pool) / (len(pool) + _FEW) if name in _CONTEXT else 1.0
        total += WEIGHTS[name] * sure * standard(values)
    if question.half_life_s is not None:
        total += _RECENCY * np.exp2(-np.maximum(question.now_s - shelf.time_s[pool], 0) / question.half_life_s)
    order = np.argsort(-total, kind="stable")[:k]
    return [Hit(shelf.ids[pool[at]], _share(float(total[at]))) for at in order.tolist()]


def signals(shelf: Shelf, question: Question, query: bm25.Asked, cosines: Numbers, pool: Slots) -> dict[str, Numbers]:
    """What speaks for each note of the pool, one array a signal.

    `meaning`: its cosine; `nearby`: the mean cosine of its neighbours; `note`, `window` and `source`: see `bm25.Said`;
    `wide`: its window's and its neighbours' windows' together; `speaker`: whether the query names who says it.
    """
    before, after = shelf.before[pool], shelf.after[pool]
    beside = _together(len(shelf.ids), pool, before, after)
    said = bm25.fields(shelf, query, beside)
    at = np.searchsorted(beside, pool)
    windows = np.zeros(len(shelf.ids) + 1, np.float32)  # NONE reads the last place
    windows[beside] = said.window
    return {
        "meaning": cosines[pool],
        "nearby": _mean_beside(cosines, pool, before, after),
        "note": said.note[at],
        "window": said.window[at],
        "wide": windows[pool] + windows[before] + windows[after],
        "source": said.source[at],
        "speaker": _named(shelf, question.speakers)[pool],
    }


def _together(size: int, *slots: Slots) -> Slots:
    """All of these slots, ascending, each once."""
    if sum(map(len, slots)) < size // 8:
        found = np.sort(np.concatenate(slots))  # np.unique hashes, which takes four times as long
        first = np.append(True, found[1:] != found[:-1]) if len(found) else np.zeros(0, np.bool_)
        return found[first & (found != NONE)]
    chosen = np.zeros(size + 1, np.bool_)
    for some in slots:
        chosen[some] = True
    return np.flatnonzero(chosen[:-1])  # the last place was NONE's


def _mean_beside(near: Numbers, pool: Slots, before: Slots, after: Slots) -> Numbers:
    """The mean of each note's neighbours; its own number where it has none."""
    alone = (before == NONE) & (after == NONE)
    whole = np.where(before == NONE, 0, near[before]) + np.where(after == NONE, 0, near[after])
    count = np.maximum((before != NONE).astype(np.float32) + (after != NONE), 1)
    return np.where(alone, near[pool], whole / count).astype(np.float32)


def _named(shelf: Shelf, speakers: Keys) -> Numbers:
    named = np.zeros(len(shelf.ids), np.float32)
    for posting in shelf.postings.find(speakers):
        named[posting.slots] = 1
    return named


def standard(values: Numbers) -> Numbers:
    """Standard scores, 0 where all are equal."""
    spread = values.std()
    return (values - values.mean()) / spread if spread > 1e-9 else np.zeros_like(values)


class _Near(NamedTuple):
    """A cosine for every slot and one place more, for `NONE`: the least one where none was computed.

    `slots`: where one was computed; None: everywhere.
    """

    cosines: Numbers
    slots: Slots | None


def _cosines(shelf: Shelf, vector: Vector, eligible: Mask, wanted: int) -> _Near:
    size = len(shelf.ids)
    if shelf.matrix is None:
        return _spread(size, np.zeros(0, np.int64), np.zeros(0, np.float32))
    if size <= _EXACT:
        return _Near(np.append(shelf.matrix.cosines(vector), np.float32(0)), None)
    slots = shelf.matrix.likely(vector, wanted, eligible)
    return _spread(size, slots, shelf.matrix.cosines(vector, slots))


def _given(shelf: Shelf, near: Sequence[Hit]) -> _Near:
    known = [(shelf.slot_of[hit.id], hit.score) for hit in near if hit.id in shelf.slot_of]
    slots = np.array([slot for slot, _ in known], np.int64)
    return _spread(len(shelf.ids), slots, np.array([score for _, score in known], np.float32))


def _spread(size: int, slots: Slots, cosines: Numbers) -> _Near:
    found = np.full(size + 1, cosines.min() if len(cosines) else 0, np.float32)
    found[slots] = cosines
    return _Near(found, slots)


def _pool(shelf: Shelf, query: bm25.Asked, near: _Near, eligible: Mask, k: int) -> Slots:
    """The notes worth a close look, ascending: all of a small space."""
    if np.count_nonzero(eligible) <= max(_SMALL, 4 * k):
        return np.flatnonzero(eligible)
    meant = np.flatnonzero(eligible) if near.slots is None else near.slots[eligible[near.slots]]
    if len(meant) > _POOL:
        meant = meant[np.argpartition(-near.cosines[meant], _POOL)[:_POOL]]
    return _together(len(eligible), meant, bm25.best(shelf, query, _POOL, eligible))


def _share(score: float) -> float:
    """A sum of standard scores in 0 to 1, as users expect a score to be; 0.5 is the pool's average note."""
    return 1 / (1 + math.exp(-score))
