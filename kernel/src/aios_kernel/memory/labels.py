"""The scalars of a note's metadata, indexed for equality filters. Keys and values are always bound parameters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeAlias, Union

import apsw

Scalar: TypeAlias = Union[str, int, float, bool]

_MAX_VALUE = 128


def write_labels(db: apsw.Connection, space: int, note: int, metadata: Mapping[str, Any]) -> None:
    """Replace the labels of a note by the scalars of its metadata."""
    db.execute("DELETE FROM labels WHERE note = ?", (note,))
    labels = [
        (space, key, _canonical(value), note)
        for key, value in metadata.items()
        if isinstance(value, str | int | float | bool)
    ]
    db.executemany("INSERT INTO labels (space, key, value, note) VALUES (?, ?, ?, ?)", labels)


def replace_labels(db: apsw.Connection, space: int, note: int, metadata: str) -> None:
    """`write_labels` for metadata as it is stored."""
    write_labels(db, space, note, json.loads(metadata))


def labelled(db: apsw.Connection, space: int, labels: Mapping[str, Scalar]) -> dict[int, tuple[str, bool]]:
    """The notes that carry all of one or more labels: sequence number to id and whether the note has a vector."""
    found: dict[int, tuple[str, bool]] | None = None
    for key, value in labels.items():
        rows = db.execute(
            "SELECT n.seq, n.id, n.model IS NOT NULL FROM labels l JOIN notes n ON n.seq = l.note"
            " WHERE l.space = ? AND l.key = ? AND l.value = ?",
            (space, key, _canonical(value)),
        )
        notes = {int(seq): (str(id), bool(embedded)) for seq, id, embedded in rows}
        found = notes if found is None else {seq: note for seq, note in found.items() if seq in notes}
    return found or {}


def _canonical(value: Scalar) -> str:
    """One spelling for equal values: 1 and 1.0 are equal, 1 and True and "1" are not; long ones become a digest."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = json.dumps(value)
    return text if len(text) <= _MAX_VALUE else "sha256:" + hashlib.sha256(text.encode()).hexdigest()
