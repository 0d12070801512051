"""What notes were before each change, kept for a while, so that what one agent wrote can be taken back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeAlias

import apsw

from aios_kernel.memory.labels import replace_labels

DAYS: Final = 30.0
"""How long history reaches back."""

_PARTS: Final = ((1, 4, 5, 6), (2, 10), (11,), (12,), (13,))
"""Columns of a state that change together: the text with what is made of it, metadata, time, expiry, successor."""
_TEXT: Final = 1

State: TypeAlias = tuple[Any, ...]
"""author, text, metadata, created_s, model, vector, terms, updated_s, framework, program, source, time_s, expires_s,
superseded_by, and the note's sequence number."""


class _Step(NamedTuple):
    """A change: who made it, and the note before and after (None: there was none)."""

    by: str
    before: State | None
    after: State | None


class Undone(NamedTuple):
    """A note that a rollback changed, and whether its vector went, came or changed."""

    space: int
    id: str
    vector: bool


def keep(db: apsw.Connection, space: int, id: str | None, by: str, now: float) -> None:
    """Before a change by an agent: note down what a note is, or with `id` None every note of a space."""
    db.execute(
        "INSERT INTO history (space, id, at_s, by_agent, author, text, metadata, created_s, model, vector, terms,"
        " updated_s, framework, program, source, time_s, expires_s, superseded_by, note)"
        " SELECT space, id, ?, ?, author, text, metadata, created_s, model, vector, terms, updated_s, framework,"
        " program, source, time_s, expires_s, superseded_by, seq FROM notes WHERE space = ? AND id = coalesce(?, id)",
        (now, by, space, id),
    )


def keep_creation(db: apsw.Connection, space: int, id: str, by: str, now: float) -> None:
    """Before a note is made whose id had another one before; of other notes, age and author tell who made them."""
    db.execute(
        "INSERT INTO history (space, id, at_s, by_agent) SELECT ?1, ?2, ?3, ?4"
        " WHERE EXISTS (SELECT 1 FROM history WHERE space = ?1 AND id = ?2)",
        (space, id, now, by),
    )


def forget_before(db: apsw.Connection, at_s: float) -> None:
    """Drop history that is older."""
    db.execute("DELETE FROM history WHERE at_s < ?", (at_s,))


def touched(db: apsw.Connection, space: int, agent: str, since_s: float) -> list[str]:
    """The notes that an agent, or an agent inside it, made or changed since a time."""
    rows = db.execute(
        "SELECT id FROM history WHERE space = ?1 AND at_s >= ?3"
        " AND (by_agent = ?2 OR substr(by_agent, 1, length(?2) + 1) = ?2 || '/')"
        " UNION SELECT id FROM history WHERE space = ?1 AND created_s >= ?3 AND at_s >= ?3"
        " AND (author = ?2 OR substr(author, 1, length(?2) + 1) = ?2 || '/')"
        " UNION SELECT id FROM notes WHERE space = ?1 AND created_s >= ?3"
        " AND (author = ?2 OR substr(author, 1, length(?2) + 1) = ?2 || '/')",
        (space, agent, since_s),
    )
    return [str(row[0]) for row in rows]


def roll_back(
    db: apsw.Connection, space: int, ids: Iterable[str], agent: str, since_s: float, *, by: str, now: float
) -> list[Undone]:
    """Give notes the state that they would have if the agent had changed nothing since a time.

    What others changed in the meantime stays. The rollback is a change like any other, and can be rolled back.
    """
    undone: list[Undone] = []
    for id in ids:
        steps = _steps(db, space, id, since_s)
        if not steps:
            continue
        before, after = steps[-1].after, _without(steps, agent)
        if _meant(before) != _meant(after):
            keep(db, space, id, by, now) if before is not None else keep_creation(db, space, id, by, now)
            _write(db, space, id, after, now)
            undone.append(Undone(space, id, _vector(before) != _vector(after)))
    return undone


def _steps(db: apsw.Connection, space: int, id: str, since_s: float) -> list[_Step]:
    rows = list(
        db.execute(
            "SELECT by_agent, author, text, metadata, created_s, model, vector, terms, updated_s, framework, program,"
            " source, time_s, expires_s, superseded_by, note FROM history"
            " WHERE space = ? AND id = ? AND at_s >= ? ORDER BY seq",
            (space, id, since_s),
        )
    )
    now = db.execute(
        "SELECT author, text, metadata, created_s, model, vector, terms, updated_s, framework, program, source, time_s,"
        " expires_s, superseded_by, seq FROM notes WHERE space = ? AND id = ?",
        (space, id),
    ).fetchone()
    states = [None if row[-1] is None else tuple(row[1:]) for row in rows]
    states.append(None if now is None else tuple(now))
    steps = [_Step(str(row[0]), *states[at : at + 2]) for at, row in enumerate(rows)]
    first = states[0]
    if first is not None and first[3] >= since_s:  # made within the time, by its author
        steps.insert(0, _Step(str(first[0]), None, first))
    return steps


def _without(steps: list[_Step], agent: str) -> State | None:
    """The state after all steps but those of an agent and the agents inside it."""
    state = steps[0].before
    for step in steps:
        if step.by != agent and not step.by.startswith(f"{agent}/"):
            state = _again(step, state)
    return state


def _again(step: _Step, state: State | None) -> State | None:
    """Make a change on another state than it was made on."""
    before, after = step.before, step.after
    if before is None or after is None or before[0] != after[0]:  # made, deleted, or written anew by somebody else
        return after
    if state is None:  # the note that was changed would not be there: only a new text makes one
        return after if after[_TEXT] != before[_TEXT] else None
    made = list(state)
    for part in _PARTS:
        if any(before[column] != after[column] for column in part):
            for column in part:
                made[column] = after[column]
    return tuple(made)


def _meant(state: State | None) -> Any:
    """A state without the time of its last change."""
    return None if state is None else (*state[:7], *state[8:])


def _vector(state: State | None) -> Any:
    return None if state is None or state[4] is None else (state[4], state[5])


def _write(db: apsw.Connection, space: int, id: str, state: State | None, now: float) -> None:
    db.execute(
        "DELETE FROM labels WHERE note = (SELECT seq FROM notes WHERE space = ? AND id = ?)",
        (space, id),
    )
    db.execute("DELETE FROM notes WHERE space = ? AND id = ?", (space, id))
    if state is None:
        return
    seq = state[-1]
    values = (*state[:7], now, *state[8:-1])
    db.execute(
        "INSERT INTO notes (seq, space, id, author, text, metadata, created_s, model, vector, terms, updated_s,"
        " framework, program, source, time_s, expires_s, superseded_by)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (seq, space, id, *values),
    )
    replace_labels(db, space, seq, str(state[2]))
