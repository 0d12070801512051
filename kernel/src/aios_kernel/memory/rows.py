"""Writing the notes table: the truth that every index is rebuilt from.

Where a space is in the vector index, a change of a note that has or had a vector leaves a line in `outbox`, in the same
transaction; the line goes when the index has taken the change over. So an index that was killed in between is caught up
exactly. What a change replaces stays in `history` for a while.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import apsw

from aios_kernel._marks import updated
from aios_kernel.errors import InvalidRequest
from aios_kernel.failpoints import failpoint
from aios_kernel.memory.history import keep, keep_creation
from aios_kernel.memory.index import Space, Vector
from aios_kernel.memory.labels import write_labels
from aios_kernel.memory.reading import beside, listed, no_note, number_of
from aios_kernel.memory.shelf import Entry
from aios_kernel.memory.terms import Terms, pack
from aios_kernel.syscalls import Note

_SOURCES: Final = ("source", "session", "session_id", "thread", "thread_id", "conversation", "conversation_id")
"""Metadata that names what a note is a piece of."""
_SPEAKERS: Final = ("speaker", "from", "sender", "name", "role")
"""Metadata that names who says it."""


class Embedded(NamedTuple):
    """A vector and the name of the model that made it, and the words of the same text."""

    model: str
    vector: Vector
    terms: Terms


class Origin(NamedTuple):
    """Who writes: the agent, the framework it runs in, and the run."""

    author: str
    framework: str = ""
    program: str = ""


class Draft(NamedTuple):
    """A note to be written; without `embedded` it is found by id, age and metadata only. Times as in `Note`.

    `fresh`: its id was made just now, so that no note has it or had it.
    """

    id: str
    origin: Origin
    text: str
    metadata: dict[str, Any]
    now: float
    embedded: Embedded | None
    source: str | None = None
    time_s: float | None = None
    expires_s: float | None = None
    fresh: bool = False


class Change(NamedTuple):
    """A written note, and the outbox line that its index entry waits for (None: there is none, or it stays as it is).

    `entry` is what searches need of it, None if they do not find it; `first`: its space had no notes before.
    """

    note: Note
    ticket: int | None
    entry: Entry | None
    first: bool = False


def put(db: apsw.Connection, space: Space, draft: Draft) -> Change:
    """Insert a note or replace the one of the same id, which keeps its age."""
    number = number_of(db, space)
    first = number < 0
    if first:
        db.execute("INSERT INTO spaces (principal, namespace) VALUES (?, ?)", space)
        number = db.last_insert_rowid()
    had = None if draft.fresh else _replaced(db, number, draft)
    made = draft.embedded
    metadata = to_json(draft.metadata)
    (seq,) = db.execute(
        "INSERT INTO notes (space, id, author, framework, program, source, text, metadata, created_s, updated_s,"
        " time_s, expires_s, model, vector, terms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?9, ?9, ?, ?, ?, ?, ?)"
        " ON CONFLICT (space, id) DO UPDATE SET author = excluded.author, framework = excluded.framework,"
        " program = excluded.program, source = excluded.source, text = excluded.text, metadata = excluded.metadata,"
        " updated_s = excluded.updated_s, time_s = excluded.time_s, expires_s = excluded.expires_s,"
        " superseded_by = NULL, model = excluded.model, vector = excluded.vector, terms = excluded.terms"
        " RETURNING seq",
        (
            number,
            draft.id,
            *draft.origin,
            draft.source or source_of(draft.metadata),
            draft.text,
            metadata,
            draft.now,
            draft.time_s,
            draft.expires_s,
            *(_stored(made) if made else (None, None, None)),
        ),
    )
    failpoint("memory.inserted")
    if draft.metadata or not draft.fresh:
        write_labels(db, number, seq[0], draft.metadata)
    ticket = remember(db, number, draft.id) if made is not None or had else None
    note = _written(space, draft, metadata) if draft.fresh else listed(db, space, number, draft.id)
    return Change(note, ticket, _entry(seq[0], note, made.vector, made.terms) if made else None, first)


def update(  # noqa: PLR0913 - what a note consists of, and who changes it
    db: apsw.Connection,
    space: Space,
    id: str,
    *,
    by: str,
    now: float,
    text: str | None,
    metadata: dict[str, Any] | None,
    embedded: Embedded | None,
    taint: Iterable[str] = (),
) -> Change | None:
    """Replace parts of a note, and mark it with `taint`; raises `NotFound`.

    `embedded` belongs to `text` and is taken only if the note has a vector. None, and no change: the note needs a
    vector for its new text (somebody gave it one meanwhile) and there is none here.
    """
    number = number_of(db, space)
    had = db.execute(
        "SELECT model IS NOT NULL, metadata FROM notes"
        " WHERE space = ? AND id = ? AND (expires_s IS NULL OR expires_s > ?)",
        (number, id, now),
    ).fetchone()
    if had is None:
        raise no_note(space, id)
    metadata = updated(json.loads(had[1]), metadata, taint)
    if had[0] and text is not None and embedded is None:
        return None
    keep(db, number, id, by, now)
    made = embedded if had[0] else None
    (seq,) = db.execute(
        "UPDATE notes SET text = coalesce(?, text), metadata = coalesce(?, metadata), source = coalesce(?, source),"
        " updated_s = ?, model = coalesce(?, model), vector = coalesce(?, vector), terms = coalesce(?, terms)"
        " WHERE space = ? AND id = ? RETURNING seq",
        (
            text,
            None if metadata is None else to_json(metadata),
            None if metadata is None else source_of(metadata),
            now,
            *(_stored(made) if made else (None, None, None)),
            number,
            id,
        ),
    )
    failpoint("memory.updated")
    if metadata is not None:
        write_labels(db, number, seq[0], metadata)
    note = listed(db, space, number, id)
    if made is None:
        return Change(note, None, None)
    return Change(note, remember(db, number, id), _entry(seq[0], note, made.vector, made.terms))


def supersede(db: apsw.Connection, space: Space, id: str, *, by: str, now: float, newer: str) -> int | None:
    """Let a newer note stand for an old one, which searches find no more; gives the outbox line, if it had a vector.

    Raises `NotFound`.
    """
    number = number_of(db, space)
    had = db.execute("SELECT model IS NOT NULL FROM notes WHERE space = ? AND id = ?", (number, id)).fetchone()
    if had is None:
        raise no_note(space, id)
    keep(db, number, id, by, now)
    db.execute(
        "UPDATE notes SET superseded_by = ?, updated_s = ?, model = NULL, vector = NULL, terms = NULL"
        " WHERE space = ? AND id = ?",
        (newer, now, number, id),
    )
    failpoint("memory.superseded")
    return remember(db, number, id) if had[0] else None


def delete(db: apsw.Connection, space: Space, id: str | None, *, by: str, now: float) -> dict[str, int | None]:
    """Remove one note, or all; gives the ids, each with its outbox line if it had a vector."""
    number = number_of(db, space)
    keep(db, number, id, by, now)
    rows = list(
        db.execute(
            "DELETE FROM notes WHERE space = ?1 AND id = coalesce(?2, id) RETURNING seq, id, model IS NOT NULL",
            (number, id),
        )
    )
    failpoint("memory.deleted")
    db.executemany("DELETE FROM labels WHERE note = ?", [(seq,) for seq, _, _ in rows])
    return {str(gone): remember(db, number, gone) if had else None for _, gone, had in rows}


def remember(db: apsw.Connection, number: int, id: str) -> int | None:
    """Leave a line in the outbox, if the space is in the vector index; gives its number."""
    db.execute("INSERT INTO outbox (space, id) SELECT id, ? FROM spaces WHERE id = ? AND indexed", (id, number))
    failpoint("memory.remembered")
    return db.last_insert_rowid() if db.changes() else None


def source_of(metadata: Mapping[str, Any]) -> str | None:
    """What a note's metadata names as the conversation or document that it is a piece of."""
    for key in _SOURCES:
        value = metadata.get(key)
        if isinstance(value, str | int | float) and value != "":
            return str(value)
    return None


def speaker_in(metadata: Mapping[str, Any]) -> str | None:
    """Whom a note's metadata names as the one who says it."""
    said_by = (metadata.get(key) for key in _SPEAKERS)
    return next((name for name in said_by if isinstance(name, str) and 0 < len(name) <= 100), None)


def to_json(metadata: dict[str, Any]) -> str:
    """Metadata as it is stored; raises `InvalidRequest`."""
    try:
        text = json.dumps(metadata, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the metadata is no JSON object: {error}", fix="use JSON values only") from error
    return text


def _replaced(db: apsw.Connection, number: int, draft: Draft) -> bool | None:
    """Keep what a note of the draft's id was before it; gives whether that had a vector, None if there was none."""
    had = db.execute("SELECT model IS NOT NULL FROM notes WHERE space = ? AND id = ?", (number, draft.id)).fetchone()
    if had is None:
        keep_creation(db, number, draft.id, draft.origin.author, draft.now)
        return None
    keep(db, number, draft.id, draft.origin.author, draft.now)
    return bool(had[0])


def _written(space: Space, draft: Draft, metadata: str) -> Note:
    """A fresh note as it reads from its row."""
    return Note(
        id=draft.id,
        namespace=space.namespace,
        author=draft.origin.author,
        text=draft.text,
        metadata=json.loads(metadata),
        created_s=draft.now,
        updated_s=draft.now,
        framework=draft.origin.framework,
        program=draft.origin.program,
        source=draft.source or source_of(draft.metadata),
        time_s=None if draft.time_s is None else float(draft.time_s),
        expires_s=draft.expires_s,
        searchable=draft.embedded is not None,
    )


def _entry(seq: int, note: Note, vector: Vector, terms: Terms) -> Entry:
    time_s = note.created_s if note.time_s is None else note.time_s
    return Entry(seq, note.id, beside(note.source, note.program, note.author), time_s, note.expires_s, vector, terms)


def _stored(made: Embedded) -> tuple[str, bytes, bytes]:
    return made.model, made.vector.astype("<f4").tobytes(), pack(made.terms)
