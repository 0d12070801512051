"""What only the embedded backend can show: SIGKILL, a full disk, a damaged or locked file, group commit."""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import apsw
import pytest

from aios_kernel import _sqlite
from aios_kernel.errors import Busy, InternalError, QuotaExceeded
from aios_kernel.storage import SqliteStorage

A = ("u", "agent/alice")

_WRITER = """
import asyncio, hashlib, sys
from pathlib import Path
from aios_kernel.storage import SqliteStorage

async def worker(storage, cycle, name):
    for n in range(1_000_000):
        path = f"{cycle}/{name}/{n}"
        await storage.put("u", "agent/alice", path, hashlib.sha256(path.encode()).digest() * 50)
        print(path, flush=True)

async def main():
    storage = SqliteStorage(Path(sys.argv[1]))
    await asyncio.gather(*(worker(storage, sys.argv[2], name) for name in range(8)))

asyncio.run(main())
"""


def _run_and_kill(path: Path, cycle: int, seconds: float) -> list[str]:
    """Let eight writers run for a while, SIGKILL them, and return the paths of the acknowledged files."""
    command = [sys.executable, "-c", _WRITER, str(path), str(cycle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        acknowledged = (first + child.stdout.read()).split("\n")[:-1]  # a torn last line was not acknowledged
    return acknowledged


async def test_kill_9_loses_no_acknowledged_file(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    for cycle in range(4):
        acknowledged += _run_and_kill(tmp_path / "storage.db", cycle, random.Random(cycle).uniform(0.05, 0.3))
        storage = SqliteStorage(tmp_path / "storage.db")
        for path in acknowledged:
            assert (await storage.get(*A, path)).data == hashlib.sha256(path.encode()).digest() * 50
        await storage.close()
    assert len(acknowledged) > 50


async def test_a_full_disk_is_a_typed_error_and_the_store_lives_on(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "storage.db")
    await storage.put(*A, "before", b"x")
    writer = storage._db._writer._db
    writer.pragma("max_page_count", writer.pragma("page_count") + 10)
    results = await asyncio.gather(
        *(storage.put(*A, f"big{n}", bytes(200_000)) for n in range(3)), return_exceptions=True
    )
    assert all(isinstance(error, InternalError) and "no space" in error.message for error in results)
    assert len({id(error) for error in results}) == 3
    assert (await storage.get(*A, "before")).data == b"x"
    writer.pragma("max_page_count", 1_000_000)
    assert (await storage.put(*A, "after", bytes(200_000))).version == 1
    assert [info.path for info in await storage.list(*A)] == ["after", "before"]
    await storage.close()


async def test_a_database_locked_by_another_program_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sqlite, "BUSY_TIMEOUT_MS", 50)
    storage = SqliteStorage(tmp_path / "storage.db")
    other = apsw.Connection(str(tmp_path / "storage.db"))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Busy, match="another program"):
        await storage.put(*A, "f", b"x")
    other.execute("ROLLBACK")
    other.close()
    assert (await storage.put(*A, "f", b"x")).version == 1
    await storage.close()


def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="cannot be read or written"):
        SqliteStorage(tmp_path / "missing" / "storage.db")


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "storage.db")
    asyncio.run(storage.put(*A, "f", b"x"))
    for file in tmp_path.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
    asyncio.run(storage.close())


async def test_waiting_writes_share_a_commit(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "storage.db")
    commits = 0

    def count() -> bool:
        nonlocal commits
        commits += 1
        return False

    storage._db._writer._db.set_commit_hook(count)
    await asyncio.gather(*(storage.put(*A, f"f{n}", b"x") for n in range(300)))
    assert commits < 100
    storage._db._writer._db.set_commit_hook(None)
    await storage.close()


async def test_the_tables_of_release_0_1_are_brought_up_to_date(tmp_path: Path) -> None:
    old = apsw.Connection(str(tmp_path / "storage.db"))
    old.execute(
        "CREATE TABLE files (id INTEGER PRIMARY KEY, principal TEXT NOT NULL, owner TEXT NOT NULL, path TEXT NOT NULL,"
        " version INTEGER NOT NULL, size INTEGER NOT NULL, created_s REAL NOT NULL, data BLOB NOT NULL,"
        " UNIQUE (principal, owner, path, version)) STRICT; PRAGMA user_version = 1"
    )
    for version, data in ((1, b"one"), (2, b"second")):
        old.execute(
            "INSERT INTO files (principal, owner, path, version, size, created_s, data)"
            " VALUES (?, ?, 'f', ?, ?, 1.0, ?)",
            (*A, version, len(data), data),
        )
    old.close()
    storage = SqliteStorage(tmp_path / "storage.db", 12)
    assert (await storage.get(*A, "f")).data == b"second"
    assert await storage.usage(*A) == 9
    with pytest.raises(QuotaExceeded):
        await storage.put(*A, "g", b"four")
    await storage.close()
