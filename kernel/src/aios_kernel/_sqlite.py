"""SQLite as every manager uses it: how a database is opened and what its errors mean to a caller."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import apsw

from aios_kernel.errors import AiosError, Busy, ConfigError, InternalError, InvalidRequest
from aios_kernel.failpoints import failpoint, plan

Synchronous: TypeAlias = Literal["FULL", "NORMAL"]
Upgrade: TypeAlias = Callable[[apsw.Connection], None]
"""Changes the tables of one version into those of the next; runs in a transaction."""

BUSY_TIMEOUT_MS = 5000
_LOG_BYTES = 1_200 * (4096 + 24)
"""SQLite moves pages from the log to the file when 1,000 are there; a group of commits goes a little beyond."""

_log = logging.getLogger(__name__)


def connect(path: Path, *, synchronous: Synchronous = "FULL", read_only: bool = False) -> apsw.Connection:
    """Open a database in WAL mode; the file is created for its owner's eyes only.

    Args:
        path: the database file.
        synchronous: `FULL` makes a commit survive a power loss, `NORMAL` only the death of the process.
        read_only: refuse writes on this connection.

    Raises:
        AiosError: the file cannot be opened or is no database.
    """
    db: apsw.Connection | None = None
    try:
        path.touch(mode=0o600)
        db = apsw.Connection(str(path), vfs=_files())
        db.set_busy_timeout(BUSY_TIMEOUT_MS)
        db.execute("PRAGMA journal_mode = WAL")
        db.pragma("synchronous", synchronous)
        if read_only:
            db.execute("PRAGMA query_only = ON")
    except (apsw.Error, OSError) as error:
        if db is not None:
            db.close(True)
        raise typed_error(error, path) from error
    return db


def migrate(
    db: apsw.Connection, path: Path, schema: str, version: int, upgrades: Mapping[int, Upgrade] | None = None
) -> None:
    """Create the tables of a new database, or bring those of an earlier release up to date, all or nothing.

    Args:
        db: the database.
        path: its file, for errors.
        schema: SQL that creates the tables.
        version: the schema's version.
        upgrades: what makes version `n` version `n + 1`, by `n`.

    Raises:
        ConfigError: a newer release wrote the database.
        AiosError: the schema cannot be written.
    """
    try:
        with transaction(db):
            found = db.pragma("user_version")
            if found == 0:
                db.execute(schema)
            else:
                _upgrade(db, path, int(found), version, upgrades or {})
            if found != version:
                db.pragma("user_version", version)
            failpoint(f"{path.stem}.migrated")
    except (apsw.Error, OSError) as error:
        raise typed_error(error, path) from error


def reserve_log(db: apsw.Connection, path: Path) -> None:
    """Give the write-ahead log the size that it has between two checkpoints.

    A commit that makes the file longer waits for the journal of the file system too: 0.27 ms instead of 0.16 ms, and
    2 ms beside other writers (measured, ext4). SQLite takes zeros behind the last frame for the log's end. Where there
    is no room, the log grows as ever.
    """
    log = path.with_name(f"{path.name}-wal")
    db.execute("BEGIN IMMEDIATE")  # nobody writes to the log meanwhile
    try:
        with log.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            try:
                file.write(bytes(max(0, _LOG_BYTES - size)))
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                _log.debug("%s is not reserved: %s", log, error)
                file.truncate(size)
    except OSError as error:
        _log.debug("%s is not reserved: %s", log, error)
    finally:
        db.execute("ROLLBACK")


def _files() -> str | None:
    """How SQLite works with files: as it is used to, or with failpoints in between."""
    if plan is None:
        return None
    from aios_kernel._fault_files import NAME

    return NAME


def _upgrade(db: apsw.Connection, path: Path, found: int, version: int, upgrades: Mapping[int, Upgrade]) -> None:
    steps = [upgrades.get(step) for step in range(found, version)]
    if found > version or None in steps:
        raise ConfigError(
            f"{path} has schema version {found}; this release knows version {version}",
            fix="pip install --upgrade aios-kernel, or point AIOS_HOME at another folder",
        )
    for step in steps:
        assert step is not None
        step(db)
    if steps:
        _log.info("%s was brought from schema version %d to %d", path, found, version)


@contextmanager
def transaction(db: apsw.Connection) -> Generator[None]:
    """Commit what the block writes, or undo all of it.

    Unlike `with db:`, it keeps the first error when SQLite has rolled back by itself (disk full, I/O error).
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def typed_error(error: Exception, path: Path) -> AiosError:
    """Translate an error of SQLite or the operating system for the caller, and log it."""
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return Busy(
            f"another program holds {path} locked",
            fix="end the program that has the file open",
            retry_after_s=BUSY_TIMEOUT_MS / 1000,
        )
    if isinstance(error, apsw.TooBigError):
        return InvalidRequest("the data is larger than SQLite can hold", fix="split it")
    _log.error("%s: %s", path, error, exc_info=error)
    if isinstance(error, apsw.FullError):
        return InternalError(f"no space is left for {path}", fix=f"free space on the disk of {path.parent}")
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return InternalError(
            f"{path} is damaged or no database: {error}",
            fix=f"restore {path.name} from a backup, or move it away to start anew",
        )
    return InternalError(
        f"{path} cannot be read or written: {error}", fix=f"check the disk and rights of {path.parent}"
    )
