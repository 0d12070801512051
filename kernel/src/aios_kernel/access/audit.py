"""The audit log: one record a syscall, each chained to the one before by SHA-256.

A syscall never waits for the log: `append` queues, a writer thread commits what has gathered a few times a second. An
edited, removed, inserted or reordered record breaks the chain, a cut tail disagrees with the head kept beside it. (Who
can rewrite the whole file can forge the whole chain; that needs checkpoints signed elsewhere.)
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import apsw
import msgspec

from aios_kernel._batch import BatchThread
from aios_kernel._database import Reader
from aios_kernel._sqlite import connect, migrate, transaction, typed_error
from aios_kernel.errors import AiosError
from aios_kernel.syscalls import AuditRecord

_SCHEMA = """
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    time_s REAL NOT NULL,
    principal TEXT NOT NULL,
    agent TEXT NOT NULL,
    program TEXT NOT NULL,
    syscall TEXT NOT NULL,
    resource TEXT NOT NULL,
    outcome TEXT NOT NULL,
    queued_s REAL NOT NULL,
    ran_s REAL NOT NULL,
    digest BLOB NOT NULL
) STRICT;
CREATE INDEX audit_principal ON audit (principal, seq);
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, digest BLOB NOT NULL) STRICT;
"""
_VERSION = 1
_GENESIS: Final = hashlib.sha256(b"aios audit 1").digest()
_LINGER_S = 0.2
_MAX_WAITING = 200_000
_MAX_TEXT = 1024

_log = logging.getLogger(__name__)


class AuditEntry(NamedTuple):
    """What one syscall was and how it ended, before it has its place in the chain."""

    time_s: float
    principal: str
    agent: str
    program: str
    syscall: str
    resource: str
    outcome: str
    queued_s: float
    ran_s: float


class Verdict(NamedTuple):
    """Whether the chain holds, and the first sequence number at which it does not."""

    ok: bool
    bad_seq: int | None


@final
class AuditLog:
    """The chained log in one SQLite file; see the module's docstring.

    Records follow their syscalls within a second. While the disk refuses, they wait in memory (200,000 of them; more
    are counted, and the log gets a record `audit.lost` with their number).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = connect(path, synchronous="NORMAL")
        migrate(self._db, path, _SCHEMA, _VERSION)
        head = self._db.execute("SELECT seq, digest FROM head").fetchone()
        self._seq, self._digest = (int(head[0]), bytes(head[1])) if head else (0, _GENESIS)
        self._reader = Reader(path, name="audit")
        self._waiting: deque[AuditEntry] = deque()
        self._lost = 0
        self._thread: BatchThread[AuditEntry | Future[None]] = BatchThread(
            self._write, name="aios-audit-writer", linger_s=_LINGER_S, max_items=4096
        )

    def append(self, entry: AuditEntry) -> None:
        """Queue one record; takes about a microsecond and never waits. Raises `Cancelled` after `close`."""
        self._thread.put(entry)

    async def flush(self) -> None:
        """Return once everything appended so far is in the database; raises the disk's error if it refuses."""
        written: Future[None] = Future()
        self._thread.put(written, urgent=True)
        await asyncio.wrap_future(written)

    async def tail(self, principal: str, limit: int = 100, agent: str | None = None) -> list[AuditRecord]:
        """The newest records of a principal, newest first, of one agent if one is named."""
        await self.flush()

        def read(db: apsw.Connection) -> list[AuditRecord]:
            rows = db.execute(
                "SELECT seq, time_s, principal, agent, program, syscall, resource, outcome, queued_s, ran_s, digest"
                " FROM audit WHERE principal = :principal AND (:agent IS NULL OR agent = :agent)"
                " ORDER BY seq DESC LIMIT :limit",
                {"principal": principal, "agent": agent, "limit": max(0, limit)},
            )
            return [_record(row) for row in rows]

        return await self._reader.run(read)

    async def verify(self) -> Verdict:
        """Recompute the whole chain (about a million records a second), everything appended so far included."""
        await self.flush()
        return await self._reader.run(_verify)

    async def close(self) -> None:
        """Write what is queued and close the database."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._thread.close()
        self._reader.close()
        self._db.close(True)

    def _write(self, batch: list[AuditEntry | Future[None]]) -> None:
        for item in batch:
            if isinstance(item, Future):
                continue
            if len(self._waiting) < _MAX_WAITING:
                self._waiting.append(item)
            else:
                self._lost += 1
        error: AiosError | None = None
        try:
            self._commit()
        except apsw.Error as cause:
            error = typed_error(cause, self._path)
        for item in batch:
            if isinstance(item, Future) and item.set_running_or_notify_cancel():
                item.set_exception(error) if error else item.set_result(None)

    def _commit(self) -> None:
        entries = list(self._waiting)
        if self._lost and entries:
            entries.append(entries[-1]._replace(syscall="audit.lost", resource="", outcome=f"{self._lost} records"))
        if not entries:
            return
        rows, seq, digest = _chain(entries, self._seq, self._digest)
        with transaction(self._db):
            self._db.executemany("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?)", (seq, digest))
        self._seq, self._digest = seq, digest
        self._waiting.clear()
        self._lost = 0


def _clean(entry: AuditEntry) -> list[float | str]:
    """The values as SQLite will give them back: finite floats, valid and bounded text."""
    return [_number(value) if isinstance(value, (int, float)) else _text(str(value)) for value in entry]


def _number(value: float) -> float:
    return float(value) if math.isfinite(value) else 0.0


def _text(value: str) -> str:
    return value[:_MAX_TEXT].encode(errors="backslashreplace").decode()


def _next_digest(digest: bytes, seq: int, entry: Iterable[Any]) -> bytes:
    return hashlib.sha256(digest + msgspec.msgpack.encode((seq, *entry))).digest()


def _chain(entries: list[AuditEntry], seq: int, digest: bytes) -> tuple[list[tuple[Any, ...]], int, bytes]:
    rows: list[tuple[Any, ...]] = []
    for entry in entries:
        seq += 1
        values = _clean(entry)
        digest = _next_digest(digest, seq, values)
        rows.append((seq, *values, digest))
    return rows, seq, digest


def _record(row: tuple[Any, ...]) -> AuditRecord:
    seq, *fields, digest = row
    entry = AuditEntry(*fields)
    return AuditRecord(seq=seq, digest=bytes(digest).hex(), **entry._asdict())


def _verify(db: apsw.Connection) -> Verdict:
    seq, digest = 0, _GENESIS
    for row in db.execute("SELECT * FROM audit ORDER BY seq"):
        seq += 1
        digest = _next_digest(digest, seq, row[1:-1])
        if row[0] != seq or row[-1] != digest:
            return Verdict(False, seq)
    head_seq, head_digest = db.execute("SELECT seq, digest FROM head").fetchone() or (0, _GENESIS)
    if head_seq != seq:
        return Verdict(False, min(seq, head_seq) + 1)
    return Verdict(True, None) if head_digest == digest else Verdict(False, seq)
