"""The notes table: the truth that every index is rebuilt from.

A change of a note that has or had a vector leaves a line in `outbox`, in the same transaction; the line goes when the
vector index has taken the change over. So an index that was killed in between is caught up exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import apsw
import msgspec
import numpy as np

from aios_kernel._names import shown
from aios_kernel.errors import InvalidRequest, NotFound
from aios_kernel.memory.index import Hit, Space, Vector
from aios_kernel.memory.labels import Scalar, labelled, write_labels
from aios_kernel.syscalls import Note

SCHEMA: Final = """
CREATE TABLE spaces (
    id INTEGER PRIMARY KEY,
    principal TEXT NOT NULL,
    namespace TEXT NOT NULL,
    UNIQUE (principal, namespace)
) STRICT;
CREATE TABLE notes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    space INTEGER NOT NULL,
    id TEXT NOT NULL,
    author TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL,
    created_s REAL NOT NULL,
    model TEXT,
    vector BLOB,
    UNIQUE (space, id)
) STRICT;
CREATE INDEX notes_age ON notes (space, seq);
CREATE INDEX notes_model ON notes (space, model) WHERE model IS NOT NULL;
CREATE TABLE labels (
    space INTEGER NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    note INTEGER NOT NULL,
    PRIMARY KEY (note, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX labels_value ON labels (space, key, value, note);
CREATE TABLE outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, space INTEGER NOT NULL, id TEXT NOT NULL) STRICT;
CREATE INDEX outbox_space ON outbox (space, seq);
"""
VERSION: Final = 1


class Embedded(NamedTuple):
    """A vector and the name of the model that made it."""

    model: str
    vector: Vector


class Draft(NamedTuple):
    """A note to be written; without `embedded` it is found by id, age and metadata only."""

    id: str
    author: str
    text: str
    metadata: dict[str, Any]
    now: float
    embedded: Embedded | None


class Change(NamedTuple):
    """A written note, and the outbox line that its index entry waits for (None: no entry changes)."""

    note: Note
    ticket: int | None


def put(db: apsw.Connection, space: Space, draft: Draft) -> Change:
    """Insert a note or replace the one of the same id, which keeps its age."""
    db.execute("INSERT OR IGNORE INTO spaces (principal, namespace) VALUES (?, ?)", space)
    number = number_of(db, space)
    had = db.execute("SELECT model IS NOT NULL FROM notes WHERE space = ? AND id = ?", (number, draft.id)).fetchone()
    model, blob = (draft.embedded.model, draft.embedded.vector.tobytes()) if draft.embedded else (None, None)
    (row,) = db.execute(
        "INSERT INTO notes (space, id, author, text, metadata, created_s, model, vector)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (space, id) DO UPDATE SET author = excluded.author, text = excluded.text,"
        " metadata = excluded.metadata, model = excluded.model, vector = excluded.vector"
        " RETURNING seq, id, author, text, metadata, created_s",
        (number, draft.id, draft.author, draft.text, _json(draft.metadata), draft.now, model, blob),
    )
    write_labels(db, number, row[0], draft.metadata)
    changed = draft.embedded is not None or (had is not None and bool(had[0]))
    return Change(_note(space, row), _remember(db, number, draft.id) if changed else None)


def update(
    db: apsw.Connection,
    space: Space,
    id: str,
    *,
    text: str | None,
    metadata: dict[str, Any] | None,
    embedded: Embedded | None,
) -> Change | None:
    """Replace parts of a note; raises `NotFound`.

    `embedded` belongs to `text` and is taken only if the note has a vector. None, and no change: the note needs a
    vector for its new text (somebody gave it one meanwhile) and there is none here.
    """
    number = number_of(db, space)
    had = db.execute("SELECT model IS NOT NULL FROM notes WHERE space = ? AND id = ?", (number, id)).fetchone()
    if had is None:
        raise no_note(space, id)
    if had[0] and text is not None and embedded is None:
        return None
    moved = bool(had[0]) and embedded is not None
    model, blob = (embedded.model, embedded.vector.tobytes()) if embedded is not None and moved else (None, None)
    (row,) = db.execute(
        "UPDATE notes SET text = coalesce(:text, text), metadata = coalesce(:metadata, metadata),"
        " vector = coalesce(:vector, vector), model = coalesce(:model, model)"
        " WHERE space = :space AND id = :id RETURNING seq, id, author, text, metadata, created_s",
        {
            "space": number,
            "id": id,
            "text": text,
            "metadata": None if metadata is None else _json(metadata),
            "model": model,
            "vector": blob,
        },
    )
    if metadata is not None:
        write_labels(db, number, row[0], metadata)
    return Change(_note(space, row), _remember(db, number, id) if moved else None)


def delete(db: apsw.Connection, space: Space, id: str | None) -> dict[str, int | None]:
    """Remove one note, or all; gives the ids, each with its outbox line if it had a vector."""
    number = number_of(db, space)
    rows = list(
        db.execute(
            "DELETE FROM notes WHERE space = ?1 AND id = coalesce(?2, id) RETURNING seq, id, model IS NOT NULL",
            (number, id),
        )
    )
    db.executemany("DELETE FROM labels WHERE note = ?", [(seq,) for seq, _, _ in rows])
    return {str(gone): _remember(db, number, gone) if had else None for _, gone, had in rows}


def get(db: apsw.Connection, space: Space, id: str) -> tuple[Note, bool]:
    """Read a note, and whether it has a vector; raises `NotFound`."""
    row = db.execute(
        "SELECT seq, id, author, text, metadata, created_s, model IS NOT NULL FROM notes WHERE space = ? AND id = ?",
        (number_of(db, space), id),
    ).fetchone()
    if row is None:
        raise no_note(space, id)
    return _note(space, row[:6]), bool(row[6])


def oldest(db: apsw.Connection, space: Space, labels: Mapping[str, Scalar], k: int) -> list[Note]:
    """The first `k` notes by age that carry all labels."""
    number = number_of(db, space)
    if not labels:
        rows = db.execute(
            "SELECT seq, id, author, text, metadata, created_s FROM notes WHERE space = ? ORDER BY seq LIMIT ?",
            (number, k),
        )
        return [_note(space, row) for row in rows]
    found = labelled(db, number, labels)
    ids = [id for _, (id, _) in sorted(found.items())[:k]]
    return list(fetch(db, space, ids))


def fetch(db: apsw.Connection, space: Space, ids: Iterable[str]) -> Iterator[Note]:
    """Read notes by id, in the given order; those that are not there are left out."""
    number = number_of(db, space)
    for id in ids:
        row = db.execute(
            "SELECT seq, id, author, text, metadata, created_s FROM notes WHERE space = ? AND id = ?", (number, id)
        ).fetchone()
        if row is not None:
            yield _note(space, row)


def fetch_scored(db: apsw.Connection, space: Space, hits: Iterable[Hit]) -> Iterator[Note]:
    """Read the notes of a ranking, with their scores."""
    scores = {hit.id: hit.score for hit in hits}
    for note in fetch(db, space, scores):
        yield msgspec.structs.replace(note, score=scores[note.id])


def with_vectors(db: apsw.Connection, space: Space, labels: Mapping[str, Scalar]) -> set[str] | None:
    """Ids of the notes that carry all labels and have a vector; None if there are no labels to carry."""
    if not labels:
        return None
    return {id for id, embedded in labelled(db, number_of(db, space), labels).values() if embedded}


def no_note(space: Space, id: str) -> NotFound:
    """The error for a note that is not there."""
    return NotFound(
        f"{space.namespace} has no note {shown(id)}", fix="memory.search with an empty query lists the notes"
    )


def number_of(db: apsw.Connection, space: Space) -> int:
    """The space's number in the tables; -1, which has no notes, if it was never written to."""
    row = db.execute("SELECT id FROM spaces WHERE principal = ? AND namespace = ?", space).fetchone()
    return -1 if row is None else int(row[0])


def _remember(db: apsw.Connection, number: int, id: str) -> int:
    db.execute("INSERT INTO outbox (space, id) VALUES (?, ?)", (number, id))
    return db.last_insert_rowid()


def _note(space: Space, row: Sequence[Any]) -> Note:
    _, id, author, text, metadata, created_s = row
    return Note(
        id=id,
        namespace=space.namespace,
        author=author,
        text=text,
        metadata=json.loads(metadata),
        created_s=created_s,
    )


def _json(metadata: dict[str, Any]) -> str:
    try:
        text = json.dumps(metadata, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the metadata is no JSON object: {error}", fix="use JSON values only") from error
    return text


def vector_of(blob: bytes) -> Vector:
    """A vector as it is stored: float32, little-endian."""
    return np.frombuffer(blob, "<f4")
