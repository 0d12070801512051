"""The tools' database: effects of calls and long jobs. It is opened when the first of them needs it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar, final

import apsw

from aios_kernel._database import Database, Job

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE effects (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    tool TEXT NOT NULL,
    digest BLOB NOT NULL,
    arguments TEXT,
    program TEXT NOT NULL,
    began_s REAL NOT NULL,
    ends_at_s REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('begun', 'done', 'failed', 'unknown')),
    content TEXT,
    ended_s REAL,
    PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX effects_ended ON effects (ended_s);
CREATE INDEX effects_begun ON effects (state) WHERE state = 'begun';
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    principal TEXT NOT NULL,
    agent TEXT NOT NULL,
    program TEXT NOT NULL,
    key TEXT NOT NULL,
    tool TEXT NOT NULL,
    digest BLOB NOT NULL,
    arguments TEXT NOT NULL,
    timeout_s REAL NOT NULL,
    submitted_s REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    attempt INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    started_s REAL,
    ended_s REAL,
    code TEXT NOT NULL,
    error TEXT NOT NULL,
    above TEXT NOT NULL DEFAULT '[]',
    UNIQUE (principal, agent, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_ended ON jobs (ended_s);
"""
_VERSION = 2


def _with_agents_above(db: apsw.Connection) -> None:
    """Jobs of version 1 did not know which agents their own ran below."""
    db.execute("ALTER TABLE jobs ADD COLUMN above TEXT NOT NULL DEFAULT '[]'")


_UPGRADES = {1: _with_agents_above}


@final
class ToolStore:
    """`tools.db` of a data directory. Writes are durable when they return (full sync, group commit)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: Database | None = None
        self._opening = asyncio.Lock()

    @property
    def exists(self) -> bool:
        """Whether an earlier life of the kernel left one."""
        return self._path.exists()

    async def read(self, job: Job[T]) -> T:
        """Run `job` on a connection that cannot write."""
        return await (await self._open()).read(job)

    async def write(self, job: Job[T]) -> T:
        """Run `job` in a transaction; its result is durable."""
        return await (await self._open()).write(job)

    async def close(self) -> None:
        """Commit what is queued and close."""
        if self._database is not None:
            await asyncio.to_thread(self._database.close)

    async def _open(self) -> Database:
        if self._database is None:
            async with self._opening:
                if self._database is None:
                    self._database = await asyncio.to_thread(Database, self._path, _SCHEMA, _VERSION, _UPGRADES)
        return self._database
