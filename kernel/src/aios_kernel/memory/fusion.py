"""One ranking of a space's notes from their vectors, their words, and the words around them.

The weights are rounded from those that did best on LoCoMo conversations, each held out once, with turns as notes.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final

import numpy as np
import numpy.typing as npt

from aios_kernel.memory.index import Hit
from aios_kernel.memory.lexicon import Lexicon, Scores

_SMALL: Final = 20_000
_MEANING: Final = 0.6
_NOTE: Final = 0.1
_WINDOW: Final = 0.3
_SOURCE: Final = 0.5


def hits_wanted(lexicon: Lexicon, k: int) -> int:
    """How many nearest vectors to fuse: all of a small space, few of one that is searched by a graph."""
    return max(4 * k, 1000 if len(lexicon.ids) <= _SMALL else 200)


def fused(lexicon: Lexicon, query: str, hits: Collection[Hit], allowed: Collection[str] | None, k: int) -> list[Hit]:
    """The `k` best notes, best first, by a weighted sum of standard scores.

    Args:
        lexicon: the words of the space's notes.
        query: what is looked for.
        hits: the nearest notes by cosine; any other note counts as far as the farthest of them.
        allowed: the notes that may be given, None for all; the others still speak for their neighbours.
        k: how many.
    """
    if not lexicon.ids:
        return []
    words = lexicon.scores(query)
    total = (
        _MEANING * _standard(_spread(lexicon, hits))
        + _NOTE * _standard(words.note)
        + _WINDOW * _standard(words.window)
        + _SOURCE * _standard(words.source)
    )
    total[~_eligible(lexicon, allowed)] = -np.inf
    best = np.argpartition(-total, k)[:k] if k < len(total) else np.arange(len(total))
    best = best[np.argsort(-total[best], kind="stable")]
    return [Hit(lexicon.ids[slot], _share(float(total[slot]))) for slot in best if total[slot] > -np.inf]


def _share(score: float) -> float:
    """A sum of standard scores in 0 to 1, as users expect a score to be; 0.5 is the space's average note."""
    return 1 / (1 + math.exp(-score))


def _spread(lexicon: Lexicon, hits: Collection[Hit]) -> Scores:
    floor = min((hit.score for hit in hits), default=0.0)
    found = np.full(len(lexicon.ids), floor, np.float32)
    for hit in hits:
        slot = lexicon.slot_of.get(hit.id)
        if slot is not None:
            found[slot] = hit.score
    return found


def _eligible(lexicon: Lexicon, allowed: Collection[str] | None) -> npt.NDArray[np.bool_]:
    if allowed is None:
        return lexicon.alive()
    eligible = np.zeros(len(lexicon.ids), np.bool_)
    eligible[[lexicon.slot_of[id] for id in allowed if id in lexicon.slot_of]] = True
    return eligible


def _standard(values: Scores) -> Scores:
    """Standard scores, 0 where all are equal."""
    spread = values.std()
    return (values - values.mean()) / spread if spread > 1e-9 else np.zeros_like(values)
