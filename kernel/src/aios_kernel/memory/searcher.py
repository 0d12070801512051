"""One search of one space, on the reader's thread."""

from __future__ import annotations

from typing import Final, final

import apsw

from aios_kernel.memory import ranking, reading
from aios_kernel.memory.index import Hit, Space, Vector
from aios_kernel.memory.indexer import Indexer
from aios_kernel.memory.ranking import Question
from aios_kernel.memory.reading import Sieve
from aios_kernel.memory.recent import nearest
from aios_kernel.memory.shelves import Shelves
from aios_kernel.memory.terms import TermReader
from aios_kernel.syscalls import MemorySearch, Note

_SPARE: Final = 16
"""Notes beyond those asked for, in place of such as are deleted while a search runs."""


@final
class Searcher:
    """Ranks the notes of a space; for the reader's thread only."""

    def __init__(self, shelves: Shelves, indexer: Indexer) -> None:
        self._shelves = shelves
        self._indexer = indexer
        self._terms = TermReader()

    def find(
        self, db: apsw.Connection, space: Space, call: MemorySearch, vector: Vector, sieve: Sieve, k: int
    ) -> list[Note] | None:
        """The `k` best notes; None if the index must be prepared for the space before."""
        # The shelf is brought up to date before the view of the rows begins: what it has is in the view, unless it was
        # deleted since.
        shelf = self._shelves.of(db, space)
        allowed = reading.with_vectors(db, space, sieve)
        eligible = shelf.eligible(allowed, sieve.now_s)
        if sieve.timed:
            eligible &= (shelf.time_s >= sieve.since_s) & (shelf.time_s <= sieve.until_s)
        near = None
        if not shelf.with_vectors:
            if not self._indexer.is_open(space):
                return None
            near = self._by_index(space, vector, k, allowed)
        question = Question(*self._terms.asked(call.query), vector, sieve.now_s, call.half_life_s)
        hits = ranking.ranked(shelf, question, eligible, k + _SPARE, near)
        return list(reading.fetch_scored(db, space, hits, k))

    def _by_index(self, space: Space, vector: Vector, k: int, allowed: set[str] | None) -> list[Hit]:
        recent = self._indexer.recent.of(space)
        indexed = None if allowed is None else allowed - recent.keys()
        wanted = max(4 * k, 200)
        hits = self._indexer.search(space, vector, wanted + len(recent), indexed)
        fresh = nearest(recent, vector, allowed)
        near = sorted([*(hit for hit in hits if hit.id not in recent), *fresh], key=lambda hit: -hit.score)
        return near[:wanted]
