"""One ranking of a space's notes from their vectors, their words, and what stands beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from aios_kernel.memory import bm25
from aios_kernel.memory.index import Hit, Vector
from aios_kernel.memory.postings import Slots
from aios_kernel.memory.shelf import NONE, Mask, Numbers, Shelf
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
    cosines = _cosines(shelf, question.vector, eligible, max(_LIKELY, k)) if near is None else _given(shelf, near)
    pool = _pool(shelf, query, cosines, eligible, k)
    total = np.zeros(len(pool), np.float32)
    for name, values in signals(shelf, question, query, cosines, pool).items():
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
    missing = np.isnan(cosines)
    floor = np.float32(0.0 if missing.all() else cosines[~missing].min())
    near = np.where(missing, floor, cosines)
    before, after = shelf.before[pool], shelf.after[pool]
    beside = np.unique(np.concatenate([pool, before[before != NONE], after[after != NONE]]))
    said = bm25.fields(shelf, query, beside)
    at = np.searchsorted(beside, pool)
    windows = np.zeros(len(shelf.ids) + 1, np.float32)  # NONE reads the last place
    windows[beside] = said.window
    return {
        "meaning": near[pool],
        "nearby": _mean_beside(near, pool, before, after),
        "note": said.note[at],
        "window": said.window[at],
        "wide": windows[pool] + windows[before] + windows[after],
        "source": said.source[at],
        "speaker": _named(shelf, question.speakers)[pool],
    }


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


def _cosines(shelf: Shelf, vector: Vector, eligible: Mask, wanted: int) -> Numbers:
    """The cosine of every slot, not a number where it was not looked at; one place more, for `NONE`."""
    found = np.full(len(shelf.ids) + 1, np.nan, np.float32)
    if shelf.matrix is None:
        return found
    if len(shelf.ids) <= _EXACT:
        found[:-1] = shelf.matrix.cosines(vector)
    else:
        slots = shelf.matrix.likely(vector, wanted, eligible)
        found[slots] = shelf.matrix.cosines(vector, slots)
    return found


def _given(shelf: Shelf, near: Sequence[Hit]) -> Numbers:
    found = np.full(len(shelf.ids) + 1, np.nan, np.float32)
    for hit in near:
        slot = shelf.slot_of.get(hit.id)
        if slot is not None:
            found[slot] = hit.score
    return found


def _pool(shelf: Shelf, query: bm25.Asked, cosines: Numbers, eligible: Mask, k: int) -> Slots:
    """The notes worth a close look: all of a small space."""
    candidates = np.flatnonzero(eligible)
    if len(candidates) <= max(_SMALL, 4 * k):
        return candidates
    near = np.flatnonzero(eligible & ~np.isnan(cosines[:-1]))
    if len(near) > _POOL:
        near = near[np.argpartition(-cosines[near], _POOL)[:_POOL]]
    return np.union1d(near, bm25.best(shelf, query, _POOL, eligible))


def _share(score: float) -> float:
    """A sum of standard scores in 0 to 1, as users expect a score to be; 0.5 is the pool's average note."""
    return 1 / (1 + math.exp(-score))
