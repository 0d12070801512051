"""Grants that agents gave one another: durable rows, and an index of them in memory that decisions read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias, final

import apsw
import msgspec

from aios_kernel._database import Database
from aios_kernel.access.subject import Subject

_SCHEMA = """
CREATE TABLE grants (
    principal TEXT NOT NULL,
    grantee TEXT NOT NULL,
    resource TEXT NOT NULL,
    right TEXT NOT NULL,
    granted_by TEXT NOT NULL,
    granter TEXT NOT NULL,
    created_s REAL NOT NULL,
    PRIMARY KEY (principal, grantee, resource, right, granted_by)
) STRICT, WITHOUT ROWID;
CREATE TABLE marks (
    principal TEXT NOT NULL,
    owner TEXT NOT NULL,
    path TEXT NOT NULL,
    sources TEXT NOT NULL,
    PRIMARY KEY (principal, owner, path)
) STRICT, WITHOUT ROWID;
"""
VERSION = 2

Chain: TypeAlias = tuple[Subject, ...]
"""A run and those that it runs below, itself first."""
_Key: TypeAlias = tuple[str, str, str, str]


class Grant(NamedTuple):
    """One right on one resource and all below it, given to an agent of a principal."""

    principal: str
    grantee: str
    resource: str
    right: str
    granter: Chain

    @property
    def key(self) -> _Key:
        """Where the index has it, beside the granter's name."""
        return self.principal, self.grantee, self.right, self.resource


@final
class Grants:
    """All grants of a data directory."""

    def __init__(self, path: Path) -> None:
        self.db = Database(path, _SCHEMA, VERSION, {1: _from_version_1})
        rows = self.db.view(
            lambda db: list(db.execute("SELECT principal, grantee, resource, right, granter FROM grants"))
        )
        # Changed by the writer thread, one item at a time, and read by the kernel's loop: each step is whole.
        self._index: dict[_Key, dict[str, Chain]] = {}
        for principal, grantee, resource, right, granter in rows:
            chain = msgspec.json.decode(str(granter), type=Chain)
            self._remember([Grant(str(principal), str(grantee), str(resource), str(right), chain)])

    def __bool__(self) -> bool:
        return bool(self._index)

    def givers(self, principal: str, grantee: str, right: str, resource: str) -> Sequence[Chain]:
        """Who gave an agent this very right on this very resource."""
        found = self._index.get((principal, grantee, right, resource))
        return list(found.values()) if found else ()

    def all(self, principal: str) -> list[Grant]:
        """A principal's grants, by grantee and resource."""
        found = [
            Grant(key[0], key[1], key[3], key[2], chain)
            for key, chains in list(self._index.items())
            if key[0] == principal
            for chain in list(chains.values())
        ]
        return sorted(found, key=lambda grant: (grant.grantee, grant.resource, grant.right, grant.granter))

    async def add(self, grants: Sequence[Grant]) -> None:
        """Write grants down; they hold, durably, from the return on."""
        now = time.time()

        def insert(db: apsw.Connection) -> None:
            db.executemany(
                "INSERT OR REPLACE INTO grants (principal, grantee, resource, right, granted_by, granter, created_s)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (*grant[:4], grant.granter[0].root, msgspec.json.encode(grant.granter).decode(), now)
                    for grant in grants
                ],
            )

        await self.db.write(insert, committed=lambda _: self._remember(grants))

    async def remove(self, principal: str, to: str, resource: str, right: str, by: str | None) -> None:
        """Take a right back on a resource and all below it; `by`: only what this agent gave."""
        gone: list[tuple[str, str]] = []

        def delete(db: apsw.Connection) -> None:
            rows = db.execute(
                "DELETE FROM grants WHERE principal = ? AND grantee = ? AND right = ?"
                " AND (resource = ? OR substr(resource, 1, length(?)) = ?) AND (? IS NULL OR granted_by = ?)"
                " RETURNING resource, granted_by",
                (principal, to, right, resource, resource + "/", resource + "/", by, by),
            )
            gone.extend((str(row[0]), str(row[1])) for row in rows)

        def forget(_: None) -> None:
            for space, giver in gone:
                chains = self._index.get((principal, to, right, space), {})
                chains.pop(giver, None)
                if not chains:
                    self._index.pop((principal, to, right, space), None)

        await self.db.write(delete, committed=forget)

    def _remember(self, grants: Sequence[Grant]) -> None:
        for grant in grants:
            self._index.setdefault(grant.key, {})[grant.granter[0].root] = grant.granter


def _from_version_1(db: apsw.Connection) -> None:
    """Version 1 knew rights on spaces only, given by their owners: the agent itself, or one of the group."""
    rows = list(db.execute("SELECT principal, grantee, resource, right, granted_by, created_s FROM grants"))
    db.execute("DROP TABLE grants")
    db.execute(_SCHEMA)
    for principal, grantee, resource, right, giver, created_s in rows:
        kind, name = str(resource).split("/")[:2]
        chain = (Subject(str(principal), name if kind == "group" else "", str(giver)),)
        db.execute(
            "INSERT INTO grants VALUES (?, ?, ?, ?, ?, ?, ?)",
            (principal, grantee, resource, right, giver, msgspec.json.encode(chain).decode(), created_s),
        )
