"""The tables of `memory.db`, and how those of earlier releases become today's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import apsw

from aios_kernel.memory.terms import TermReader, pack

VERSION: Final = 3

_NOTES: Final = """
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
    terms BLOB,
    updated_s REAL NOT NULL DEFAULT 0,
    framework TEXT NOT NULL DEFAULT '',
    program TEXT NOT NULL DEFAULT '',
    source TEXT,
    time_s REAL,
    expires_s REAL,
    superseded_by TEXT,
    UNIQUE (space, id)
) STRICT;
"""
# One line a change, with what the note was before it; no note: the change made it.
_HISTORY: Final = """
CREATE TABLE history (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    space INTEGER NOT NULL,
    id TEXT NOT NULL,
    at_s REAL NOT NULL,
    by_agent TEXT NOT NULL,
    note INTEGER,
    author TEXT,
    text TEXT,
    metadata TEXT,
    created_s REAL,
    model TEXT,
    vector BLOB,
    terms BLOB,
    updated_s REAL,
    framework TEXT,
    program TEXT,
    source TEXT,
    time_s REAL,
    expires_s REAL,
    superseded_by TEXT
) STRICT;
CREATE INDEX history_note ON history (space, id, seq);
CREATE INDEX history_age ON history (at_s);
CREATE INDEX notes_expiry ON notes (expires_s) WHERE expires_s IS NOT NULL;
CREATE INDEX notes_author ON notes (space, author);
CREATE TABLE interactions (
    principal TEXT NOT NULL,
    agent TEXT NOT NULL,
    program TEXT NOT NULL,
    number INTEGER NOT NULL,
    role TEXT NOT NULL,
    text TEXT NOT NULL,
    at_s REAL NOT NULL,
    PRIMARY KEY (principal, agent, program, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE kept_logs (
    principal TEXT NOT NULL, agent TEXT NOT NULL, program TEXT NOT NULL, PRIMARY KEY (principal, agent, program)
) STRICT, WITHOUT ROWID;
-- A note as it is shown, in the order that rows.py reads; without its vector.
CREATE VIEW listed AS SELECT seq, space, model IS NOT NULL AS found, id, author, text, metadata, created_s, updated_s,
    framework, program, source, time_s, expires_s, superseded_by FROM notes;
"""
SCHEMA: Final = (
    """
CREATE TABLE spaces (
    id INTEGER PRIMARY KEY,
    principal TEXT NOT NULL,
    namespace TEXT NOT NULL,
    -- Whether its vectors are in the vector index; then every change leaves a line in the outbox.
    indexed INTEGER NOT NULL DEFAULT 0,
    UNIQUE (principal, namespace)
) STRICT;
"""
    + _NOTES
    + """
CREATE INDEX notes_age ON notes (space, seq, model);
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
    + _HISTORY
)


def _with_history(db: apsw.Connection) -> None:
    """From version 1 (release 0.1): provenance, expiry, words in the rows, history."""
    for column in (
        "terms BLOB", "updated_s REAL NOT NULL DEFAULT 0", "framework TEXT NOT NULL DEFAULT ''",
        "program TEXT NOT NULL DEFAULT ''", "source TEXT", "time_s REAL", "expires_s REAL", "superseded_by TEXT",
    ):  # fmt: skip
        db.execute("ALTER TABLE notes ADD COLUMN " + column)
    db.execute(_HISTORY)
    db.execute(
        "UPDATE notes SET updated_s = created_s, source = CAST(coalesce(json_extract(metadata, '$.source'),"
        " json_extract(metadata, '$.session'), json_extract(metadata, '$.session_id'),"
        " json_extract(metadata, '$.thread')) AS TEXT)"
    )
    reader, last = TermReader(), 0
    while True:
        rows = list(
            db.execute(
                "SELECT seq, text FROM notes WHERE seq > ? AND model IS NOT NULL ORDER BY seq LIMIT 1000", (last,)
            )
        )
        if not rows:
            return
        db.executemany(
            "UPDATE notes SET terms = ? WHERE seq = ?", [(pack(reader.of(str(text))), seq) for seq, text in rows]
        )
        last = rows[-1][0]


def _with_large_spaces_only(db: apsw.Connection) -> None:
    """From version 2: the vector index has the large spaces only, and is made anew for those."""
    db.execute(
        "ALTER TABLE spaces ADD COLUMN indexed INTEGER NOT NULL DEFAULT 0; DELETE FROM outbox;"
        " DROP INDEX notes_model; DROP INDEX notes_age; CREATE INDEX notes_age ON notes (space, seq, model)"
    )


UPGRADES: Final[Mapping[int, Callable[[apsw.Connection], None]]] = {1: _with_history, 2: _with_large_spaces_only}
