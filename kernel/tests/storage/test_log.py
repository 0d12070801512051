"""The write-ahead log of a durable database has its size from the start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from aios_kernel import _sqlite
from aios_kernel._database import Database

_SCHEMA = "CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)"
_LEFT = """
import os, sys
from pathlib import Path
from aios_kernel._database import Database

database = Database(Path(sys.argv[1]), sys.argv[2], 1, busy=True)
for _ in range(20):
    database.submit(lambda db: db.execute("INSERT INTO t (b) VALUES (randomblob(3000))")).result()
os._exit(0)  # nothing is closed: the rows are in the log only
"""


def _rows(path: Path) -> int:
    other = apsw.Connection(str(path))
    try:
        return int(other.execute("SELECT count(*) FROM t").fetchone()[0])
    finally:
        other.close()


def _insert(database: Database, count: int) -> None:
    for _ in range(count):
        database.submit(lambda db: db.execute("INSERT INTO t (b) VALUES (randomblob(3000))")).result()


def test_commits_do_not_make_it_longer(tmp_path: Path) -> None:
    path, log = tmp_path / "x.db", tmp_path / "x.db-wal"
    for opened in range(2):
        database = Database(path, _SCHEMA, 1, busy=True)
        size = log.stat().st_size
        _insert(database, 30)
        assert log.stat().st_size == size > 4 << 20
        assert _rows(path) == 30 * (opened + 1)  # another program reads the same
        database.close()
    assert not log.exists()


def test_what_a_killed_process_left_in_it_is_kept(tmp_path: Path) -> None:
    path, log = tmp_path / "x.db", tmp_path / "x.db-wal"
    subprocess.run([sys.executable, "-c", _LEFT, str(path), _SCHEMA], check=True)
    assert log.stat().st_size > 1 << 20
    for opened in range(2):
        database = Database(path, _SCHEMA, 1, busy=True)
        assert _rows(path) == 20 + 5 * opened
        _insert(database, 5)
        database.close()


def test_without_room_it_grows_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_sqlite.os, "fsync", full)
    database = Database(tmp_path / "x.db", _SCHEMA, 1, busy=True)
    assert (tmp_path / "x.db-wal").stat().st_size < 1 << 20
    _insert(database, 5)
    assert _rows(tmp_path / "x.db") == 5
    database.close()
