"""Storage in one SQLite file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import final

import apsw

from aios_kernel._database import Database
from aios_kernel._sqlite import Upgrade
from aios_kernel.failpoints import failpoint
from aios_kernel.storage.protocol import after, check_data, check_path, check_prefix, check_quota, no_file
from aios_kernel.syscalls import FileData, FileInfo

# `data` comes last, so that a listing does not read the pages that blobs overflow into.
_SCHEMA = """
CREATE TABLE files (
    id INTEGER PRIMARY KEY,
    principal TEXT NOT NULL,
    owner TEXT NOT NULL,
    path TEXT NOT NULL,
    version INTEGER NOT NULL,
    size INTEGER NOT NULL,
    created_s REAL NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (principal, owner, path, version)
) STRICT;
"""
_USAGE = """
CREATE TABLE usage (
    principal TEXT NOT NULL, owner TEXT NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (principal, owner)
) STRICT, WITHOUT ROWID;
INSERT INTO usage SELECT principal, owner, sum(size) FROM files GROUP BY principal, owner;
CREATE TRIGGER file_came AFTER INSERT ON files BEGIN
    INSERT INTO usage VALUES (new.principal, new.owner, new.size)
        ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER file_went AFTER DELETE ON files BEGIN
    UPDATE usage SET bytes = bytes - old.size WHERE principal = old.principal AND owner = old.owner;
END;
"""
_VERSION = 2


def _count_bytes(db: apsw.Connection) -> None:
    """From version 1 (release 0.1): how many bytes each owner has."""
    db.execute(_USAGE)


_UPGRADES: Mapping[int, Upgrade] = {1: _count_bytes}


@final
class SqliteStorage:
    """The embedded backend: full sync, one commit for all writes that wait at the same time.

    Args:
        path: the database file.
        quota_bytes: what the files of one owner may have, all versions together; 0: any.
    """

    def __init__(self, path: Path, quota_bytes: int = 0) -> None:
        self._db = Database(path, _SCHEMA + _USAGE, _VERSION, _UPGRADES, busy=True)
        self._quota = quota_bytes

    async def put(self, principal: str, owner: str, path: str, data: bytes) -> FileInfo:
        """Write a new version; see `Storage.put`."""
        check_data(check_path(path), data)
        now = time.time()
        return await self._db.write(lambda db: self._insert(db, (principal, owner, path), data, now))

    async def get(self, principal: str, owner: str, path: str, version: int | None = None) -> FileData:
        """Read a version; see `Storage.get`."""
        key = (principal, owner, check_path(path))
        return await self._db.read(lambda db: _select(db, key, version))

    async def list(self, principal: str, owner: str, prefix: str = "") -> list[FileInfo]:
        """List newest versions; see `Storage.list`."""
        span = (principal, owner, check_prefix(prefix), _end(prefix))

        def read(db: apsw.Connection) -> list[FileInfo]:
            rows = db.execute(
                "SELECT path, max(version), size, created_s FROM files"
                " WHERE principal = ? AND owner = ? AND path >= ? AND path < ? GROUP BY path ORDER BY path",
                span,
            )
            return [_info(row) for row in rows]

        return await self._db.read(read)

    async def versions(self, principal: str, owner: str, path: str) -> list[FileInfo]:
        """List all versions; see `Storage.versions`."""
        key = (principal, owner, check_path(path))

        def read(db: apsw.Connection) -> list[FileInfo]:
            rows = db.execute(
                "SELECT path, version, size, created_s FROM files"
                " WHERE principal = ? AND owner = ? AND path = ? ORDER BY version DESC",
                key,
            )
            return [_info(row) for row in rows]

        found = await self._db.read(read)
        if not found:
            raise no_file(owner, path)
        return found

    async def rollback(self, principal: str, owner: str, path: str, version: int) -> FileInfo:
        """Write an old version again; see `Storage.rollback`."""
        key = (principal, owner, check_path(path))
        now = time.time()

        def write_again(db: apsw.Connection) -> FileInfo:
            info = self._insert(db, key, _select(db, key, version).data, now)
            failpoint("storage.rolled_back")
            return info

        return await self._db.write(write_again)

    async def usage(self, principal: str, owner: str) -> int:
        """Bytes of an owner's files; see `Storage.usage`."""
        return await self._db.read(lambda db: _used(db, principal, owner))

    async def delete(self, principal: str, owner: str, path: str) -> int:
        """Delete a file and all below it; see `Storage.delete`."""
        below = check_path(path) + "/"
        span = (principal, owner, path, below, _end(below))

        def remove(db: apsw.Connection) -> int:
            rows = db.execute(
                "DELETE FROM files WHERE principal = ? AND owner = ? AND (path = ? OR (path >= ? AND path < ?))"
                " RETURNING path",
                span,
            )
            gone = {row[0] for row in rows}
            failpoint("storage.deleted")
            return len(gone)

        return await self._db.write(remove)

    async def close(self) -> None:
        """Finish open writes and close the database."""
        await asyncio.to_thread(self._db.close)

    def _insert(self, db: apsw.Connection, key: tuple[str, str, str], data: bytes, now: float) -> FileInfo:
        info = _insert(db, key, data, now)
        failpoint("storage.inserted")
        check_quota(key[1], key[2], _used(db, *key[:2]), self._quota)  # an error takes the row back
        return info


def _insert(db: apsw.Connection, key: tuple[str, str, str], data: bytes, now: float) -> FileInfo:
    (row,) = db.execute(
        "INSERT INTO files (principal, owner, path, version, size, created_s, data)"
        " SELECT :principal, :owner, :path, coalesce(max(version), 0) + 1, :size, :now, :data FROM files"
        " WHERE principal = :principal AND owner = :owner AND path = :path"
        " RETURNING path, version, size, created_s",
        dict(zip(("principal", "owner", "path"), key, strict=True), size=len(data), now=now, data=data),
    )
    return _info(row)


def _used(db: apsw.Connection, principal: str, owner: str) -> int:
    row = db.execute("SELECT bytes FROM usage WHERE principal = ? AND owner = ?", (principal, owner)).fetchone()
    return 0 if row is None else int(row[0])


def _select(db: apsw.Connection, key: tuple[str, str, str], version: int | None) -> FileData:
    if version is not None and not 0 < version < 2**63:  # SQLite's integers end there
        raise no_file(key[1], key[2], version)
    row = db.execute(
        "SELECT path, version, size, created_s, data FROM files"
        " WHERE principal = ? AND owner = ? AND path = ? AND version = coalesce(?, version)"
        " ORDER BY version DESC LIMIT 1",
        (*key, version),
    ).fetchone()
    if row is None:
        raise no_file(key[1], key[2], version)
    return FileData(info=_info(row[:4]), data=bytes(row[4]))


def _info(row: tuple[object, ...]) -> FileInfo:
    path, version, size, created_s = row
    assert isinstance(path, str)
    assert isinstance(version, int)
    assert isinstance(size, int)
    assert isinstance(created_s, float)
    return FileInfo(path=path, version=version, size=size, created_s=created_s)


def _end(prefix: str) -> str | bytes:
    """`after`; a blob sorts after all text in SQLite."""
    end = after(prefix)
    return b"" if end is None else end
