"""Which files untrusted content has been written to: durable, and in memory for every read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import final

import apsw
import msgspec

from aios_kernel._database import Database


@final
class Marks:
    """Sources of untrusted content by file. A path stays marked, all its versions, until it is deleted."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.changing = asyncio.Lock()
        """Held while a marked file is written, and while files are deleted: no mark is lost between the two."""
        self._known: dict[tuple[str, str], dict[str, list[str]]] = {}
        for principal, owner, path, sources in db.view(lambda db: list(db.execute("SELECT * FROM marks"))):
            found = self._known.setdefault((str(principal), str(owner)), {})
            found[str(path)] = msgspec.json.decode(str(sources), type=list[str])

    def of(self, principal: str, owner: str, paths: Iterable[str]) -> list[str]:
        """Where untrusted content in these files comes from."""
        found = self._known.get((principal, owner))
        return [source for path in paths for source in found.get(path, ())] if found else []

    async def add(self, principal: str, owner: str, path: str, sources: Iterable[str]) -> None:
        """Mark a file; durable on return."""
        before = self.of(principal, owner, [path])
        marked = list(dict.fromkeys([*before, *sources]))
        if marked == before:
            return

        def insert(db: apsw.Connection) -> None:
            db.execute(
                "INSERT OR REPLACE INTO marks (principal, owner, path, sources) VALUES (?, ?, ?, ?)",
                (principal, owner, path, msgspec.json.encode(marked).decode()),
            )

        await self._db.write(insert)
        self._known.setdefault((principal, owner), {})[path] = marked

    async def remove(self, principal: str, owner: str, path: str) -> None:
        """Forget the marks of what is deleted: a path and all below it."""
        known = self._known.get((principal, owner), {})
        gone = [each for each in known if each == path or each.startswith(f"{path}/")]
        if not gone:
            return
        for each in gone:
            del known[each]
        await self._db.write(
            lambda db: db.executemany(
                "DELETE FROM marks WHERE principal = ? AND owner = ? AND path = ?",
                [(principal, owner, each) for each in gone],
            )
        )
