"""What the indexer has not done yet: changes that the vector index has to take over, notes to be embedded anew."""

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

    `gone` lost their vectors, `stored` have one; `more` lines follow. After the last line the space has `total`
    vectors.
    """

    last: int
    stored: list[Stored]
    gone: list[str]
    more: bool
    total: int


def outgrown(db: apsw.Connection, limit: int) -> list[Space]:
    """The spaces with more vectors than `limit` that are not in the index yet."""
    rows = db.execute(
        "SELECT s.principal, s.namespace FROM spaces s JOIN notes n ON n.space = s.id"
        " WHERE NOT s.indexed GROUP BY s.id HAVING count(n.model) > ?",
        (limit,),
    )
    return [Space(*map(str, row)) for row in rows]


def has_outgrown(db: apsw.Connection, space: Space, limit: int) -> bool:
    """`outgrown` for one space; looks at `limit` notes at most."""
    (found,) = db.execute(
        "SELECT count(*) FROM (SELECT 1 FROM notes n JOIN spaces s ON s.id = n.space WHERE s.principal = ?"
        " AND s.namespace = ? AND NOT s.indexed AND n.model IS NOT NULL LIMIT ?)",
        (*space, limit + 1),
    )
    return int(found[0]) > limit


def is_indexed(db: apsw.Connection, space: Space) -> bool:
    """Whether changes of a space leave lines here for the index."""
    return bool(db.execute("SELECT 1 FROM spaces WHERE principal = ? AND namespace = ? AND indexed", space).fetchone())


def queue_all(db: apsw.Connection, space: Space) -> None:
    """Let every change of a space leave a line here from now on, and every vector that it has now."""
    number = number_of(db, space)
    db.execute("UPDATE spaces SET indexed = 1 WHERE id = ?", (number,))
    db.execute("DELETE FROM outbox WHERE space = ?", (number,))
    db.execute(
        "INSERT INTO outbox (space, id) SELECT space, id FROM notes WHERE space = ? AND model IS NOT NULL ORDER BY seq",
        (number,),
    )


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
    last, more, total = taken[-1][0] if taken else after, len(lines) > limit, 0
    if not more:  # it takes a while
        ((total,),) = db.execute("SELECT count(*) FROM notes WHERE space = ? AND model IS NOT NULL", (number,))
    return Work(last, stored, gone, more, int(total))


def cross_out(db: apsw.Connection, space: Space, last: int) -> None:
    """Remove the open lines of a space up to `last`."""
    db.execute("DELETE FROM outbox WHERE space = ? AND seq <= ?", (number_of(db, space), last))


def queue_foreign(db: apsw.Connection, model: str) -> int:
    """Queue every note whose vector another model made; gives their number."""
    db.execute(
        "INSERT INTO outbox (space, id) SELECT space, id FROM notes WHERE seq IN"
        " (SELECT seq FROM notes INDEXED BY notes_age WHERE model <> ?)",
        (model,),
    )
    return db.changes()


def queue_if_foreign(db: apsw.Connection, number: int, id: str, model: str) -> None:
    """`queue_foreign` for one note of a space, by the space's number."""
    db.execute(
        "INSERT INTO outbox (space, id) SELECT space, id FROM notes WHERE space = ? AND id = ? AND model <> ?",
        (number, id, model),
    )


def disown(db: apsw.Connection, principal: str) -> None:
    """Treat the vectors of a principal's notes as made by another model."""
    db.execute(
        "UPDATE notes SET model = '' WHERE model IS NOT NULL AND space IN (SELECT id FROM spaces WHERE principal = ?)",
        (principal,),
    )


def count_foreign(db: apsw.Connection, model: str) -> int:
    """How many notes wait to be embedded by a model."""
    (row,) = db.execute("SELECT count(*) FROM notes INDEXED BY notes_age WHERE model <> ?", (model,))
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
