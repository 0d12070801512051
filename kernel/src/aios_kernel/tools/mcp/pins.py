"""Which tools of which MCP server a person has approved, as they were then.

They are rows of a database in the data directory rather than a file beside the tools file: durable when acknowledged,
part of every backup, and out of reach of tools that write in a project's folder. `aios tools pins --json` prints them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, final

import apsw
import msgspec

from aios_kernel._database import Database
from aios_kernel.failpoints import failpoint
from aios_kernel.tools.mcp.definition import Definition, listing_digest

_SCHEMA: Final = """
CREATE TABLE servers (
    server TEXT PRIMARY KEY,
    approved_s REAL NOT NULL,
    approved_by TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE pins (
    server TEXT NOT NULL REFERENCES servers ON DELETE CASCADE,
    tool TEXT NOT NULL,
    digest TEXT NOT NULL,
    definition TEXT NOT NULL,
    PRIMARY KEY (server, tool)
) STRICT, WITHOUT ROWID;
CREATE TABLE approvals (
    number INTEGER PRIMARY KEY,
    server TEXT NOT NULL,
    approved_s REAL NOT NULL,
    approved_by TEXT NOT NULL,
    digest TEXT NOT NULL
) STRICT;
"""
_VERSION: Final = 1

FIRST_SIGHT: Final = "first sight"
"""Who approves the tools of a server with `pin = "first"`."""


class Approved(msgspec.Struct, frozen=True):
    """The tools of a server, when they were approved and by whom."""

    tools: Mapping[str, Definition]
    approved_s: float
    approved_by: str


@final
class Pins:
    """The approved tools by server. Reads are of memory; a change is durable before it is read. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._db = Database(path, _SCHEMA, _VERSION)
        # Replaced as a whole: no lock, never half a change.
        self._known: Mapping[str, Approved] = MappingProxyType(self._db.view(_read))

    def of(self, server: str) -> Approved | None:
        """What is approved of a server; None: nothing ever was."""
        return self._known.get(server)

    async def approve(self, server: str, definitions: Iterable[Definition], by: str) -> Approved:
        """Pin these tools of a server in the place of those that were; durable on return. From any loop."""
        tools = MappingProxyType({definition.name: definition for definition in definitions})
        approved = Approved(tools, time.time(), by)

        def publish(_: None) -> None:
            self._known = MappingProxyType({**self._known, server: approved})

        write = self._db.submit(lambda db: _write(db, server, approved), committed=publish)
        await asyncio.wrap_future(write)
        return approved

    def close(self) -> None:
        """Write what is under way and close; blocks."""
        self._db.close()


def _read(db: apsw.Connection) -> dict[str, Approved]:
    servers = {str(server): (at_s, by) for server, at_s, by in db.execute("SELECT * FROM servers")}
    tools: dict[str, dict[str, Definition]] = {server: {} for server in servers}
    for server, tool, definition in db.execute("SELECT server, tool, definition FROM pins"):
        tools[str(server)][str(tool)] = msgspec.json.decode(str(definition), type=Definition)
    return {
        server: Approved(MappingProxyType(tools[server]), float(str(at_s)), str(by))
        for server, (at_s, by) in servers.items()
    }


def _write(db: apsw.Connection, server: str, approved: Approved) -> None:
    row = (server, approved.approved_s, approved.approved_by)
    db.execute("DELETE FROM pins WHERE server = ?", (server,))
    failpoint("mcp.unpinned")
    db.execute("INSERT OR REPLACE INTO servers VALUES (?, ?, ?)", row)
    db.execute(
        "INSERT INTO approvals (server, approved_s, approved_by, digest) VALUES (?, ?, ?, ?)",
        (*row, listing_digest(approved.tools.values())),
    )
    db.executemany(
        "INSERT INTO pins VALUES (?, ?, ?, ?)",
        [
            (server, name, definition.digest(), msgspec.json.encode(definition).decode())
            for name, definition in approved.tools.items()
        ],
    )
