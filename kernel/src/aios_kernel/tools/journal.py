"""What is known of calls whose effects must not happen twice: an intent before, what became of it after."""

from __future__ import annotations

import time
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast, final

import apsw

from aios_kernel.tools.store import ToolStore

KEPT_S: Final = 24 * 3600.0
"""How long a finished call is known, in seconds: until then the same key gives the same result."""
_PRUNE_S = 600.0

EffectState: TypeAlias = Literal["begun", "done", "failed", "unknown"]


class EffectId(NamedTuple):
    """A call: its owner, `principal/agent`, and the key that the owner gave it."""

    owner: str
    key: str


class Intent(NamedTuple):
    """A call that is about to run.

    Attributes:
        id: whose call it is.
        tool: its name.
        digest: of tool and arguments: one key names one call.
        arguments: their text, kept where the rule may run the call again; None otherwise.
        program: the run that called.
        ends_at_s: when nobody waits for it any more, `time.time()` seconds.
    """

    id: EffectId
    tool: str
    digest: bytes
    arguments: str | None
    program: str
    ends_at_s: float


class Record(NamedTuple):
    """An intent and what became of it; `content` is its result or the text of its error."""

    intent: Intent
    state: EffectState
    content: str


@final
class EffectJournal:
    """The records, in the tools' database. Everything written is durable on return."""

    def __init__(self, store: ToolStore) -> None:
        self._store = store
        self._pruned_at = 0.0

    async def find(self, id: EffectId) -> Record | None:
        """What is known of a call."""
        rows = await self._store.read(lambda db: list(db.execute(_FIND, id)))
        return _record(rows[0]) if rows else None

    async def begin(self, intent: Intent) -> None:
        """Write an intent down; one that is there already is begun anew."""
        now = time.time()
        prune = now - self._pruned_at > _PRUNE_S
        if prune:
            self._pruned_at = now

        def write(db: apsw.Connection) -> None:
            if prune:
                db.execute("DELETE FROM effects WHERE ended_s < ?", (now - KEPT_S,))
            row = (*intent.id, intent.tool, intent.digest, intent.arguments, intent.program, now, intent.ends_at_s)
            db.execute(_BEGIN, row)

        await self._store.write(write)

    async def end(self, id: EffectId, state: EffectState, content: str) -> None:
        """Write down what became of a call."""
        row = (state, content, time.time(), *id)
        await self._store.write(lambda db: _done(db.execute(_END, row)))

    async def forget(self, id: EffectId) -> None:
        """Nothing of the call ran: as if it had not been made."""
        await self._store.write(lambda db: _done(db.execute(_FORGET, id)))

    async def unfinished(self) -> list[Record]:
        """The intents of which it is not known what became of them; none if there was never an effect."""
        if not self._store.exists:
            return []
        rows = await self._store.read(lambda db: list(db.execute(_UNFINISHED)))
        return [_record(row) for row in rows]


_SELECT = "SELECT owner, key, tool, digest, arguments, program, ends_at_s, state, content FROM effects"
_FIND = _SELECT + " WHERE owner = ? AND key = ?"
_UNFINISHED = _SELECT + " WHERE state = 'begun'"
_FORGET = "DELETE FROM effects WHERE owner = ? AND key = ?"
_BEGIN = """
INSERT INTO effects (owner, key, tool, digest, arguments, program, began_s, ends_at_s, state)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'begun')
ON CONFLICT (owner, key) DO UPDATE SET state = 'begun', content = NULL, ended_s = NULL
"""
_END = "UPDATE effects SET state = ?, content = ?, ended_s = ?, arguments = NULL WHERE owner = ? AND key = ?"


def _record(row: tuple[Any, ...]) -> Record:
    owner, key, tool, digest, arguments, program, ends_at_s, state, content = row
    intent = Intent(EffectId(owner, key), tool, digest, arguments, program, ends_at_s)
    return Record(intent, cast("EffectState", state), content or "")


def _done(cursor: object) -> None:
    """Drop a statement's cursor: a write gives nothing back."""
