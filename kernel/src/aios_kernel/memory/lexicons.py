"""The lexicons of the spaces that are searched: read from the rows at the first search, then kept up with them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, final

import apsw

from aios_kernel.memory.index import Space
from aios_kernel.memory.lexicon import Lexicon, Piece
from aios_kernel.memory.rows import number_of
from aios_kernel.memory.words import Stemmer

_MAX_NOTES: Final = 2_000_000

# A note is a piece of what its metadata names as its source. One that names none stands alone: what was noted before
# or after it by whomever says nothing about it.
_PIECES: Final = (
    "SELECT seq, id, text, CAST(coalesce(json_extract(metadata, '$.source'), json_extract(metadata, '$.session'),"
    " json_extract(metadata, '$.session_id'), json_extract(metadata, '$.thread'), 'note ' || id) AS TEXT)"
    " FROM notes WHERE space = ? AND model IS NOT NULL"
)
_ALL: Final = _PIECES + " ORDER BY seq"
_ONE: Final = _PIECES + " AND id = ?"


@final
class Lexicons:
    """Lexicons by space, the least recently used dropped beyond 2 million notes.

    `changed` may be called from any thread, `of` from one only.
    """

    def __init__(self) -> None:
        self._stemmer: Stemmer | None = None
        self._known: OrderedDict[Space, Lexicon] = OrderedDict()
        self._changes: dict[Space, dict[str, None]] = {}
        self._lock = threading.Lock()

    def changed(self, space: Space, id: str) -> None:
        """Say that a committed change made, changed or removed a note."""
        with self._lock:
            if space in self._changes:
                self._changes[space][id] = None

    def of(self, db: apsw.Connection, space: Space) -> Lexicon:
        """The lexicon of a space; must be the first read of its transaction.

        So the view of the rows, which that read fixes, holds every change that was told before.
        """
        with self._lock:
            changes = list(self._changes.get(space, ()))
            self._changes[space] = {}
        lexicon = self._known.pop(space, None)  # if this fails half-way, the next search reads all rows
        if lexicon is None or not self._follow(db, space, lexicon, changes):
            lexicon = self._read(db, space)
        self._known[space] = lexicon
        self._bound()
        return lexicon

    def _follow(self, db: apsw.Connection, space: Space, lexicon: Lexicon, changes: list[str]) -> bool:
        number = number_of(db, space)
        rows = {id: db.execute(_ONE, (number, id)).fetchone() for id in changes}
        for id, row in rows.items():
            if row is None:
                lexicon.remove(id)
        fresh = sorted(Piece(*row) for row in rows.values() if row is not None)
        return len(lexicon.ids) <= 2 * len(lexicon.slot_of) + 1000 and all(map(lexicon.take, fresh))

    def _read(self, db: apsw.Connection, space: Space) -> Lexicon:
        self._stemmer = self._stemmer or Stemmer()
        lexicon = Lexicon(self._stemmer)
        for row in db.execute(_ALL, (number_of(db, space),)):
            lexicon.take(Piece(*row))
        return lexicon

    def _bound(self) -> None:
        total = sum(len(lexicon.ids) for lexicon in self._known.values())
        while total > _MAX_NOTES and len(self._known) > 1:
            space, lexicon = self._known.popitem(last=False)
            total -= len(lexicon.ids)
            with self._lock:
                self._changes.pop(space, None)
