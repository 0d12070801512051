"""What is known of long jobs, in the tools' database."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

import apsw
import msgspec

from aios_kernel.errors import InvalidRequest, NotFound
from aios_kernel.syscalls import JobState
from aios_kernel.tools.store import ToolStore

KEPT_S: Final = 7 * 24 * 3600.0
"""How long an ended job and its output are kept, in seconds."""


class JobRow(msgspec.Struct, kw_only=True):
    """One job. Times are `time.time()` seconds.

    Attributes:
        attempt: the run that it is in, or was in last; 0: none yet.
        cancelled: somebody wants it to end.
        code: of the error that it failed with.
        above: the other agents that its run was below when it submitted it, by the outermost name.
    """

    id: str
    principal: str
    agent: str
    program: str
    key: str
    tool: str
    digest: bytes
    arguments: str
    timeout_s: float
    submitted_s: float
    state: JobState = "queued"
    attempt: int = 0
    cancelled: bool = False
    started_s: float | None = None
    ended_s: float | None = None
    code: str = ""
    error: str = ""
    above: list[str] = []

    @property
    def owners(self) -> list[str]:
        """The agents whose job it is, by the outermost name: who submitted it, and those that ran above."""
        return [self.agent.partition("/")[0], *self.above]

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state not in ("queued", "running")


class JobTable:
    """The rows. Everything written is durable on return."""

    def __init__(self, store: ToolStore) -> None:
        self._store = store

    @property
    def exists(self) -> bool:
        """Whether there can be any."""
        return self._store.exists

    async def add(self, row: JobRow) -> JobRow:
        """Write a new job down; gives it, or the one that was submitted under its key before.

        Raises:
            InvalidRequest: that one is another job.
        """

        def write(db: apsw.Connection) -> JobRow:
            known = list(db.execute(_BY_KEY, (row.principal, row.agent, row.key)))
            if known:
                return _row(known[0])
            db.execute(_INSERT, _values(row))
            return row

        found = await self._store.write(write)
        if found.digest != row.digest:
            raise InvalidRequest(
                f'the idempotency key of this job of tool "{row.tool}" is that of another job',
                fix="give every job a key of its own, or leave it out",
            )
        return found

    async def update(self, row: JobRow) -> None:
        """Write what has changed of a job."""
        changed = (
            row.state, row.attempt, row.cancelled, row.started_s, row.ended_s, row.code, row.error,
            "" if row.over else row.arguments, row.id,
        )  # fmt: skip
        await self._store.write(lambda db: _nothing(db.execute(_UPDATE, changed)))

    async def find(self, principal: str, id: str) -> JobRow:
        """A job of a principal. Raises NotFound."""
        rows = await self._store.read(lambda db: list(db.execute(_FIND, (principal, id)))) if self.exists else []
        if not rows:
            raise NotFound(f"there is no job {id!a}", fix="aios tools jobs")
        return _row(rows[0])

    async def of(self, principal: str, *, ended: bool) -> list[JobRow]:
        """A principal's jobs, oldest first."""
        if not self.exists:
            return []
        rows = await self._store.read(lambda db: list(db.execute(_OF, (principal, ended))))
        return [_row(row) for row in rows]

    async def unfinished(self) -> list[JobRow]:
        """Everybody's jobs that have not ended, oldest first."""
        return [_row(row) for row in await self._store.read(lambda db: list(db.execute(_UNFINISHED)))]

    async def prune(self) -> list[str]:
        """Forget the jobs that ended long ago; gives their ids."""
        before = (time.time() - KEPT_S,)
        gone = await self._store.write(lambda db: list(db.execute(_PRUNE, before)))
        return [str(id) for (id,) in gone]


_FIELDS = JobRow.__struct_fields__
_SELECT = (
    "SELECT id, principal, agent, program, key, tool, digest, arguments, timeout_s, submitted_s, state, attempt, "
    "cancelled, started_s, ended_s, code, error, above FROM jobs"
)
_BY_KEY = _SELECT + " WHERE principal = ? AND agent = ? AND key = ?"
_FIND = _SELECT + " WHERE principal = ? AND id = ?"
_OF = _SELECT + " WHERE principal = ? AND (? OR ended_s IS NULL) ORDER BY submitted_s"
_UNFINISHED = _SELECT + " WHERE ended_s IS NULL ORDER BY submitted_s"
_INSERT = "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE = """
UPDATE jobs SET state = ?, attempt = ?, cancelled = ?, started_s = ?, ended_s = ?, code = ?, error = ?, arguments = ?
WHERE id = ?
"""
_PRUNE = "DELETE FROM jobs WHERE ended_s < ? RETURNING id"


def _values(row: JobRow) -> tuple[Any, ...]:
    return (*(getattr(row, field) for field in _FIELDS[:-1]), msgspec.json.encode(row.above).decode())


def _row(values: Iterable[Any]) -> JobRow:
    *plain, above = values
    fields = dict(zip(_FIELDS, (*plain, msgspec.json.decode(str(above))), strict=True))
    return msgspec.convert(fields, JobRow, strict=False)


def _nothing(cursor: object) -> None:
    """Drop a statement's cursor: a write gives nothing back."""
