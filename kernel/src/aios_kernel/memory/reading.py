"""Reading the notes table."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apsw
import msgspec
import numpy as np

from aios_kernel._names import shown
from aios_kernel.errors import NotFound
from aios_kernel.memory.index import Hit, Space, Vector
from aios_kernel.memory.labels import Scalar, labelled
from aios_kernel.memory.links import UNNAMED
from aios_kernel.memory.shelf import Stock
from aios_kernel.syscalls import Note


class Sieve(NamedTuple):
    """Which notes are asked for."""

    now_s: float
    labels: Mapping[str, Scalar] = {}
    author: str | None = None
    since_s: float = float("-inf")
    until_s: float = float("inf")
    after: str | None = None
    """For listings: begin behind the note of this id."""

    @property
    def timed(self) -> bool:
        """Whether it asks for a time."""
        return self.since_s > float("-inf") or self.until_s < float("inf")


def get(db: apsw.Connection, space: Space, id: str, now: float) -> tuple[Note, bool]:
    """Read a note, and whether it has a vector; raises `NotFound`."""
    row = db.execute(
        "SELECT * FROM listed WHERE space = ? AND id = ? AND (expires_s IS NULL OR expires_s > ?)",
        (number_of(db, space), id, now),
    ).fetchone()
    if row is None:
        raise no_note(space, id)
    return note_of(space, row), bool(row[2])


def oldest(db: apsw.Connection, space: Space, sieve: Sieve, k: int) -> list[Note]:
    """The first `k` notes by age that pass the sieve."""
    number = number_of(db, space)
    chosen = None if not sieve.labels else {id for id, _ in labelled(db, number, sieve.labels).values()}
    rows = db.execute(
        "SELECT * FROM listed WHERE space = ?1 AND (expires_s IS NULL OR expires_s > ?2)"
        " AND author = coalesce(?3, author) AND coalesce(time_s, created_s) BETWEEN ?4 AND ?5"
        " AND (?6 IS NULL OR seq > (SELECT seq FROM notes WHERE space = ?1 AND id = ?6)) ORDER BY seq",
        (number, sieve.now_s, sieve.author, sieve.since_s, sieve.until_s, sieve.after),
    )
    found: list[Note] = []
    for row in rows:
        if len(found) == k:
            break
        if chosen is None or row[3] in chosen:
            found.append(note_of(space, row))
    return found


def fetch_scored(db: apsw.Connection, space: Space, hits: Iterable[Hit], k: int) -> Iterator[Note]:
    """Read up to `k` notes of a ranking with their scores; those that are not there are left out."""
    number = number_of(db, space)
    found = (
        (db.execute("SELECT * FROM listed WHERE space = ? AND id = ?", (number, id)).fetchone(), score)
        for id, score in hits
    )
    there = ((row, score) for row, score in found if row is not None)
    for row, score in itertools.islice(there, k):
        yield msgspec.structs.replace(note_of(space, row), score=score)


def with_vectors(db: apsw.Connection, space: Space, sieve: Sieve) -> set[str] | None:
    """Ids of the notes that have a vector and the author and labels asked for; None if nothing is asked."""
    number = number_of(db, space)
    chosen: set[str] | None = None
    if sieve.labels:
        chosen = {id for id, embedded in labelled(db, number, sieve.labels).values() if embedded}
    if sieve.author is not None:
        rows = db.execute(
            "SELECT id FROM notes WHERE space = ? AND author = ? AND model IS NOT NULL", (number, sieve.author)
        )
        written = {str(row[0]) for row in rows}
        chosen = written if chosen is None else chosen & written
    return chosen


def expired(db: apsw.Connection, now: float) -> list[tuple[Space, str]]:
    """The notes whose time is over."""
    rows = db.execute(
        "SELECT s.principal, s.namespace, n.id FROM notes n JOIN spaces s ON s.id = n.space WHERE n.expires_s <= ?",
        (now,),
    )
    return [(Space(str(principal), str(namespace)), str(id)) for principal, namespace, id in rows]


def spaces(db: apsw.Connection, principal: str, now: float) -> list[tuple[str, int, int]]:
    """The namespaces of a principal that have notes: name, notes, and how many of them searches find."""
    rows = db.execute(
        "SELECT s.namespace, count(*), count(n.model) FROM spaces s JOIN notes n ON n.space = s.id"
        " WHERE s.principal = ? AND (n.expires_s IS NULL OR n.expires_s > ?) GROUP BY s.id ORDER BY s.namespace",
        (principal, now),
    )
    return [(str(namespace), int(notes), int(found)) for namespace, notes, found in rows]


def no_note(space: Space, id: str) -> NotFound:
    """The error for a note that is not there."""
    return NotFound(
        f"{space.namespace} has no note {shown(id)}", fix="memory.search with an empty query lists the notes"
    )


def number_of(db: apsw.Connection, space: Space) -> int:
    """The space's number in the tables; -1, which has no notes, if it was never written to."""
    row = db.execute("SELECT id FROM spaces WHERE principal = ? AND namespace = ?", space).fetchone()
    return -1 if row is None else int(row[0])


def note_of(space: Space, row: Sequence[Any]) -> Note:
    """A note from its row of the view `listed`."""
    _, _, found, id, author, text, metadata, created_s, updated_s, framework, program, source, *rest = row
    time_s, expires_s, newer = rest
    return Note(
        id=id,
        namespace=space.namespace,
        author=author,
        text=text,
        metadata=json.loads(metadata),
        created_s=created_s,
        updated_s=updated_s,
        framework=framework,
        program=program,
        source=source,
        time_s=time_s,
        expires_s=expires_s,
        superseded_by=newer,
        searchable=bool(found),
    )


def listed(db: apsw.Connection, space: Space, number: int, id: str) -> Note:
    """A note that is there, by the number of its space."""
    return note_of(space, db.execute("SELECT * FROM listed WHERE space = ? AND id = ?", (number, id)).fetchone() or ())


def vector_of(blob: bytes) -> Vector:
    """A vector as it is stored: float32, little-endian."""
    return np.frombuffer(blob, "<f4")


def stock(db: apsw.Connection, number: int, model: str) -> Stock:
    """What searches need of all notes of a space, oldest first; only vectors of `model`."""
    rows = db.execute(
        "SELECT seq, id, author, source, program, coalesce(time_s, created_s), expires_s, model = ?2, vector, terms"
        " FROM notes WHERE space = ?1 AND model IS NOT NULL ORDER BY seq",
        (number, model),
    )
    found = Stock([], [], [], [], [], [], [])
    for seq, id, author, source, program, time_s, expires_s, present, vector, terms in rows:
        found.seqs.append(seq)
        found.ids.append(id)
        found.sources.append(beside(source, program, author))
        found.times_s.append(time_s)
        found.expires_s.append(expires_s)
        found.vectors.append(vector if present else None)
        found.terms.append(terms)
    return found


def beside(source: str | None, program: str, author: str) -> str:
    """Whose neighbours a note has: those of its source, else what the same run of an agent wrote."""
    return source or UNNAMED + (program or author)
