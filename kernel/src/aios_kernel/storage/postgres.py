"""Storage in a PostgreSQL database, for kernels whose files live on another machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, LiteralString, final

from aios_kernel.errors import AiosError, Cancelled, ConfigError, InternalError
from aios_kernel.storage.protocol import after, check_data, check_path, check_prefix, check_quota, no_file
from aios_kernel.syscalls import FileData, FileInfo

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg_pool import AsyncConnectionPool

_VERSION: Final = 1
_CONNECTIONS: Final = 8
_PATIENCE_S: Final = 10.0
# "C" orders text by its UTF-8 bytes, as SQLite and Python do.
_SCHEMA: Final[LiteralString] = """
CREATE TABLE IF NOT EXISTS aios_storage (version integer NOT NULL);
CREATE TABLE IF NOT EXISTS aios_files (
    principal text COLLATE "C" NOT NULL,
    owner text COLLATE "C" NOT NULL,
    path text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    size bigint NOT NULL,
    created_s double precision NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (principal, owner, path, version)
);
CREATE TABLE IF NOT EXISTS aios_usage (
    principal text COLLATE "C" NOT NULL,
    owner text COLLATE "C" NOT NULL,
    bytes bigint NOT NULL,
    PRIMARY KEY (principal, owner)
);
INSERT INTO aios_storage SELECT 1 WHERE NOT EXISTS (SELECT FROM aios_storage);
"""


@final
class PostgresStorage:
    """`Storage` in PostgreSQL 14 or later; the tables are made at the first call.

    Writers of one owner take turns (an advisory lock), so that versions have no gaps and quotas hold.

    Args:
        url: `postgresql://...`; a password is better left to PGPASSFILE.
        quota_bytes: what the files of one owner may have, all versions together; 0: any.
    """

    def __init__(self, url: str, quota_bytes: int = 0) -> None:
        self._url = url
        self._quota = quota_bytes
        self._pool: AsyncConnectionPool[Any] | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def put(self, principal: str, owner: str, path: str, data: bytes) -> FileInfo:
        """Write a new version; see `Storage.put`."""
        check_data(check_path(path), data)
        async with self._transaction() as db:
            return await self._insert(db, (principal, owner, path), data)

    async def get(self, principal: str, owner: str, path: str, version: int | None = None) -> FileData:
        """Read a version; see `Storage.get`."""
        key = (principal, owner, check_path(path))
        async with self._transaction() as db:
            return await _select(db, key, version)

    async def list(self, principal: str, owner: str, prefix: str = "") -> list[FileInfo]:
        """List newest versions; see `Storage.list`."""
        end = after(check_prefix(prefix))
        async with self._transaction() as db:
            rows = await db.execute(
                "SELECT DISTINCT ON (path) path, version, size, created_s FROM aios_files"
                " WHERE principal = %s AND owner = %s AND path >= %s AND (%s::text IS NULL OR path < %s)"
                " ORDER BY path, version DESC",
                (principal, owner, prefix, end, end),
            )
            return [FileInfo(*row) for row in await rows.fetchall()]

    async def versions(self, principal: str, owner: str, path: str) -> list[FileInfo]:
        """List all versions; see `Storage.versions`."""
        check_path(path)
        async with self._transaction() as db:
            rows = await db.execute(
                "SELECT path, version, size, created_s FROM aios_files"
                " WHERE principal = %s AND owner = %s AND path = %s ORDER BY version DESC",
                (principal, owner, path),
            )
            found = [FileInfo(*row) for row in await rows.fetchall()]
        if not found:
            raise no_file(owner, path)
        return found

    async def rollback(self, principal: str, owner: str, path: str, version: int) -> FileInfo:
        """Write an old version again; see `Storage.rollback`."""
        key = (principal, owner, check_path(path))
        async with self._transaction() as db:
            return await self._insert(db, key, (await _select(db, key, version)).data)

    async def usage(self, principal: str, owner: str) -> int:
        """Bytes of an owner's files; see `Storage.usage`."""
        async with self._transaction() as db:
            rows = await db.execute(
                "SELECT bytes FROM aios_usage WHERE principal = %s AND owner = %s", (principal, owner)
            )
            row = await rows.fetchone()
            return 0 if row is None else int(row[0])

    async def delete(self, principal: str, owner: str, path: str) -> int:
        """Delete a file and all below it; see `Storage.delete`."""
        below = check_path(path) + "/"
        async with self._transaction() as db:
            await _take_turn(db, principal, owner)
            rows = await db.execute(
                "DELETE FROM aios_files WHERE principal = %s AND owner = %s"
                " AND (path = %s OR (path >= %s AND path < %s)) RETURNING path, size",
                (principal, owner, path, below, after(below)),
            )
            gone = await rows.fetchall()
            await db.execute(
                "UPDATE aios_usage SET bytes = bytes - %s WHERE principal = %s AND owner = %s",
                (sum(int(size) for _, size in gone), principal, owner),
            )
            return len({path for path, _ in gone})

    async def close(self) -> None:
        """Finish what was asked and hang up."""
        self._closed = True
        async with self._opening:
            pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    async def _insert(self, db: AsyncConnection[Any], key: tuple[str, str, str], data: bytes) -> FileInfo:
        principal, owner, path = key
        await _take_turn(db, principal, owner)
        rows = await db.execute(
            "INSERT INTO aios_usage VALUES (%s, %s, %s) ON CONFLICT (principal, owner)"
            " DO UPDATE SET bytes = aios_usage.bytes + excluded.bytes RETURNING bytes",
            (principal, owner, len(data)),
        )
        (used,) = await rows.fetchone() or (0,)
        check_quota(owner, path, int(used), self._quota)  # an error takes everything back
        rows = await db.execute(
            "INSERT INTO aios_files (principal, owner, path, version, size, created_s, data)"
            " SELECT %s, %s, %s, coalesce(max(version), 0) + 1, %s, %s, %s FROM aios_files"
            " WHERE principal = %s AND owner = %s AND path = %s RETURNING path, version, size, created_s",
            (*key, len(data), time.time(), data, *key),
        )
        return FileInfo(*(await rows.fetchone() or ()))

    @asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[AsyncConnection[Any]]:
        import psycopg
        from psycopg_pool import PoolTimeout

        pool = await self._connected()
        try:
            async with pool.connection() as db:
                yield db
        except AiosError:
            raise
        except (psycopg.Error, PoolTimeout) as error:
            raise _failed(error) from error

    async def _connected(self) -> AsyncConnectionPool[Any]:
        async with self._opening:
            if self._closed:
                raise Cancelled("the kernel is shutting down", fix="aios serve")
            if self._pool is None:
                self._pool = await self._opened()
            return self._pool

    async def _opened(self) -> AsyncConnectionPool[Any]:
        try:
            import psycopg
            from psycopg_pool import AsyncConnectionPool, PoolTimeout
        except ImportError as error:
            raise ConfigError("psycopg is not installed", fix="pip install 'aios-kernel[postgres]'") from error
        pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            self._url, min_size=1, max_size=_CONNECTIONS, open=False, timeout=_PATIENCE_S
        )
        try:
            await pool.open(wait=True, timeout=_PATIENCE_S)
            async with pool.connection() as db:
                await _make_tables(db)
        except BaseException as error:
            await pool.close()
            if isinstance(error, psycopg.Error | PoolTimeout):
                raise _failed(error) from error
            raise
        return pool


async def _make_tables(db: AsyncConnection[Any]) -> None:
    await db.execute("SELECT pg_advisory_xact_lock(hashtextextended('aios_storage', 0))")
    await db.execute(_SCHEMA)
    rows = await db.execute("SELECT version FROM aios_storage")
    (found,) = await rows.fetchone() or (0,)
    if found != _VERSION:
        raise ConfigError(
            f"the tables in PostgreSQL have version {found}; this release knows version {_VERSION}",
            fix="pip install --upgrade aios-kernel, or name another database in storage_url",
        )


async def _take_turn(db: AsyncConnection[Any], principal: str, owner: str) -> None:
    await db.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"{principal}\n{owner}",))


async def _select(db: AsyncConnection[Any], key: tuple[str, str, str], version: int | None) -> FileData:
    if version is not None and not 0 < version < 2**63:  # bigint ends there
        raise no_file(key[1], key[2], version)
    rows = await db.execute(
        "SELECT path, version, size, created_s, data FROM aios_files"
        " WHERE principal = %s AND owner = %s AND path = %s AND version = coalesce(%s::bigint, version)"
        " ORDER BY version DESC LIMIT 1",
        (*key, version),
        binary=True,
    )
    row = await rows.fetchone()
    if row is None:
        raise no_file(key[1], key[2], version)
    return FileData(info=FileInfo(*row[:4]), data=bytes(row[4]))


def _failed(error: Exception) -> InternalError:
    # The error's text names host and database; the URL with its password does not leave.
    return InternalError(
        f"PostgreSQL does not do what it should: {type(error).__name__}: {error}",
        fix="check that the server of storage_url runs, and that its user may write",
    )
