"""What the vector index has not taken over yet, read from and crossed out of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import apsw

from aios_kernel.memory.index import Space
from aios_kernel.memory.reading import number_of


class Stored(NamedTuple):
    """A note's vector as the tables have it; `text` to make it anew if another model made it."""

    id: str
    text: str
    model: str
    blob: bytes


class Work(NamedTuple):
    """A consistent view of changes to carry over, in order, up to line `last`.

    `gone` lost their vectors, `stored` have one; `more` lines follow; the space has `total` vectors in all.
    """

    last: int
    stored: list[Stored]
    gone: list[str]
    more: bool
    total: int


def spaces_waiting(db: apsw.Connection) -> list[Space]:
    """The spaces with open lines, oldest line first."""
    rows = db.execute(
        "SELECT s.principal, s.namespace FROM outbox o JOIN spaces s ON s.id = o.space"
        " GROUP BY s.id ORDER BY min(o.seq)"
    )
    return [Space(*map(str, row)) for row in rows]


def pending(db: apsw.Connection, space: Space, after: int, limit: int) -> Work:
    """The next open lines of a space."""
    number = number_of(db, space)
    lines = list(
        db.execute(
            "SELECT seq, id FROM outbox WHERE space = ? AND seq > ? ORDER BY seq LIMIT ?", (number, after, limit + 1)
        )
    )
    taken = lines[:limit]
    stored: list[Stored] = []
    gone: list[str] = []
    for id in dict.fromkeys(str(line[1]) for line in taken):
        row = db.execute(
            "SELECT id, text, model, vector FROM notes WHERE space = ? AND id = ? AND model IS NOT NULL", (number, id)
        ).fetchone()
        stored.append(Stored(*row)) if row else gone.append(id)
    total = db.execute("SELECT count(*) FROM notes WHERE space = ? AND model IS NOT NULL", (number,)).fetchone()
    return Work(taken[-1][0] if taken else after, stored, gone, len(lines) > limit, int(total[0]) if total else 0)


def cross_out(db: apsw.Connection, space: Space, last: int) -> None:
    """Remove the open lines of a space up to `last`."""
    db.execute("DELETE FROM outbox WHERE space = ? AND seq <= ?", (number_of(db, space), last))


def portion(db: apsw.Connection, space: Space, after: int, limit: int) -> tuple[list[Stored], int]:
    """The next vectors of a space by age, and where to go on; an empty list ends it."""
    rows = list(
        db.execute(
            "SELECT seq, id, text, model, vector FROM notes WHERE space = ? AND seq > ? AND model IS NOT NULL"
            " ORDER BY seq LIMIT ?",
            (number_of(db, space), after, limit),
        )
    )
    return [Stored(*row[1:]) for row in rows], rows[-1][0] if rows else after


def queue_foreign(db: apsw.Connection, model: str) -> int:
    """Queue every note whose vector another model made; gives their number."""
    db.execute("INSERT INTO outbox (space, id) SELECT space, id FROM notes WHERE model <> ?", (model,))
    return db.changes()


def disown(db: apsw.Connection, principal: str) -> None:
    """Treat the vectors of a principal's notes as made by another model."""
    db.execute(
        "UPDATE notes SET model = '' WHERE model IS NOT NULL AND space IN (SELECT id FROM spaces WHERE principal = ?)",
        (principal,),
    )


def count_foreign(db: apsw.Connection, model: str) -> int:
    """How many notes wait to be embedded by a model."""
    (row,) = db.execute("SELECT count(*) FROM notes WHERE model <> ?", (model,))
    return int(row[0])


def store_vectors(db: apsw.Connection, space: Space, model: str, made: Sequence[tuple[str, str, bytes]]) -> list[str]:
    """Write vectors made anew, each only where the note still has the text (id, text, vector) it was made from.

    Gives the ids of the notes that took theirs.
    """
    number, taken = number_of(db, space), list[str]()
    for id, text, blob in made:
        db.execute(
            "UPDATE notes SET model = ?, vector = ? WHERE space = ? AND id = ? AND text = ? AND model IS NOT NULL",
            (model, blob, number, id, text),
        )
        if db.changes():
            taken.append(id)
    return taken
