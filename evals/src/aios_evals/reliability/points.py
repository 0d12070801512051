"""The failpoints of the kernel's write paths, and what a kernel must be doing to reach each of them."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

Reached: TypeAlias = Literal["fresh", "start", "write", "shutdown", "backup", "restore", "snapshot"]
"""`fresh`: at the start on a new data directory; `start`: at any start; `write`: while agents write; `backup`,
`restore`: by the process of that command; `snapshot`: when a context goes to disk (needs the torch engine)."""

DATABASES: Final = ("access", "memory", "storage", "mcp")
"""Written by a `GroupWriter` each."""


class Point(NamedTuple):
    """A failpoint.

    Attributes:
        name: its name.
        reached: when.
        often: passed about so many times a second; a kill may come at any of the first ones.
    """

    name: str
    reached: Reached
    often: int = 1


def _often(database: str) -> int:
    """A person approves more slowly than agents write."""
    return 3 if database == "mcp" else 20


def _files(database: str, often: int) -> list[Point]:
    """Points inside SQLite's own output. The database's own file is written by a checkpoint: rarely, or at the end."""
    return [
        Point(f"{database}.db-wal.write", "write", often * 8),
        Point(f"{database}.db-wal.sync", "shutdown" if database == "audit" else "write", often),
        Point(f"{database}.db.write", "shutdown", 1),
        Point(f"{database}.db.sync", "shutdown", 1),
    ]


POINTS: Final[tuple[Point, ...]] = (
    Point("start.locked", "start"),
    Point("start.token", "start"),
    Point("start.opened", "start"),
    *(Point(f"{database}.migrated", "start") for database in ("audit", *DATABASES)),
    *(Point(f"{database}.before_commit", "write", _often(database)) for database in DATABASES),
    *(Point(f"{database}.after_commit", "write", _often(database)) for database in DATABASES),
    *(point for database in DATABASES for point in _files(database, _often(database))),
    *_files("audit", 3),
    Point("memory.inserted", "write", 20),
    Point("memory.updated", "write", 5),
    Point("memory.superseded", "write", 5),
    Point("memory.deleted", "write", 5),
    Point("memory.remembered", "write", 20),
    Point("memory.rolled_back", "write", 5),
    Point("memory.kept", "write"),
    Point("memory.logged", "write", 5),
    Point("memory.dropped", "write"),
    Point("memory.queued", "write"),
    Point("memory.before_index", "write"),
    Point("memory.indexed", "write"),
    Point("memory.crossed_out", "write"),
    Point("storage.inserted", "write", 20),
    Point("storage.rolled_back", "write", 5),
    Point("storage.deleted", "write", 5),
    Point("access.granted", "write", 5),
    Point("access.revoked", "write", 5),
    Point("mcp.unpinned", "write", 3),
    Point("audit.key", "fresh"),
    Point("audit.sealing", "write", 3),
    Point("audit.sealed", "write", 3),
    Point("audit.before_commit", "write", 2),
    Point("audit.after_commit", "write", 2),
    Point("audit.lasting", "shutdown"),
    Point("trace.write", "write"),
    Point("trace.written", "write"),
    Point("backup.copied", "backup"),
    Point("backup.manifest", "backup"),
    Point("backup.saved", "backup"),
    Point("restore.copied", "restore"),
    Point("restore.named", "restore", 2),
    Point("context.created", "snapshot"),
    Point("context.written", "snapshot"),
    Point("context.synced", "snapshot"),
    Point("context.saved", "snapshot"),
)
