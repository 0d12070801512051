"""The audit log: one record a syscall, each chained to the one before by SHA-256.

A syscall never waits for the log: `append` queues, a writer thread commits what has gathered a few times a second. An
edited, removed, inserted or reordered record breaks the chain; a cut or lengthened one, and one made anew as a whole,
disagrees with its signed end (`seals.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Any, final

import apsw

from aios_kernel._batch import BatchThread
from aios_kernel._database import Reader
from aios_kernel._sqlite import connect, migrate, transaction, typed_error
from aios_kernel.access.chain import START, AuditEntry, Link, lengthen
from aios_kernel.access.seals import Sealer, unsealed
from aios_kernel.access.verify import GAP, Verdict, verify
from aios_kernel.errors import AiosError
from aios_kernel.failpoints import failpoint
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
_LINGER_S = 0.2
_MAX_WAITING = 200_000
_ATTEMPTS = 3
"""To see the log and its seal at one moment, while it grows."""

_log = logging.getLogger(__name__)


@final
class AuditLog:
    """The chained log in one SQLite file; see the module's docstring.

    Records follow their syscalls within a second. While the disk refuses, they wait in memory (200,000 of them; more
    are counted, and the log gets a record `audit.lost` with their number).

    Args:
        path: the database; the private key lies beside it.
        seals: folder of the signed seals; None: beside it too.

    Raises:
        AiosError: the database cannot be opened.
        ConfigError: key or seals cannot be read or written.
    """

    def __init__(self, path: Path, seals: Path | None = None) -> None:
        self._path = path
        self._sealer = Sealer(path.with_suffix(".key"), seals or path.with_suffix(".seals"))
        self._db = connect(path, synchronous="NORMAL")
        migrate(self._db, path, _SCHEMA, _VERSION)
        head = self._db.execute("SELECT seq, digest FROM head").fetchone()
        self._end = Link(int(head[0]), bytes(head[1])) if head else START
        self._reader = Reader(path, name="audit")
        self._waiting: deque[AuditEntry] = deque()
        self._lost = 0
        self._note_gap()
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

    async def tail(
        self, principal: str, limit: int = 100, agent: str | None = None, before: int | None = None
    ) -> list[AuditRecord]:
        """The newest records of a principal, newest first, of one agent and before a record if these are named."""
        await self.flush()

        def read(db: apsw.Connection) -> list[AuditRecord]:
            rows = db.execute(
                "SELECT seq, time_s, principal, agent, program, syscall, resource, outcome, queued_s, ran_s, digest"
                " FROM audit WHERE principal = :principal AND (:agent IS NULL OR agent = :agent)"
                " AND (:before IS NULL OR seq < :before) ORDER BY seq DESC LIMIT :limit",
                {"principal": principal, "agent": agent, "before": before, "limit": max(0, limit)},
            )
            return [_record(row) for row in rows]

        return await self._reader.run(read)

    async def verify(self) -> Verdict:
        """Recompute the whole chain, everything appended so far included, and compare it with its seals."""
        await self.flush()
        try:
            for _ in range(_ATTEMPTS - 1):
                if (verdict := await self._reader.run(self._verify)).ok:
                    return verdict
            return await self._reader.run(self._verify)
        except ValueError as forged:
            return Verdict(False, self._end.seq, None, str(forged))

    def _verify(self, db: apsw.Connection) -> Verdict:
        earlier = self._sealer.seals.head()
        db.execute("SELECT seq FROM head").fetchone()  # from here on the transaction sees one state
        return verify(db, (earlier, self._sealer.seals.head()), self._sealer.seals.lasting())

    async def close(self) -> None:
        """Write what is queued and close the database."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._thread.close()
        if self._end != START:
            with contextlib.suppress(OSError):  # the newest seal holds already
                self._sealer.settle(self._end, lasting=True)
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
        except Exception as cause:  # noqa: BLE001 - whatever it was, everybody who waits must hear of it
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
        rows, end = lengthen(entries, self._end)
        self._sealer.intend(self._end, end)
        with transaction(self._db):
            self._db.executemany("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?)", end)
            failpoint("audit.before_commit")
        failpoint("audit.after_commit")
        self._end = end
        self._waiting.clear()
        self._lost = 0
        self._sealer.settle(end)

    def _note_gap(self) -> None:
        """Have the log tell where it does not end as it was sealed: a power loss, or somebody who has changed it."""
        try:
            wrong = unsealed(self._end, self._sealer.seals.head())
        except ValueError as forged:
            wrong = str(forged)
        if wrong:
            _log.error("%s: %s", self._path, wrong)
            self._waiting.append(AuditEntry(time.time(), "", "", "", GAP, "", wrong, 0.0, 0.0))


def _record(row: tuple[Any, ...]) -> AuditRecord:
    seq, *fields, digest = row
    entry = AuditEntry(*fields)
    return AuditRecord(seq=seq, digest=bytes(digest).hex(), **entry._asdict())
