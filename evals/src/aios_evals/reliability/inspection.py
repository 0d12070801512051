"""Whether a data directory is sound: its databases, its audit log, its files."""

from __future__ import annotations

from pathlib import Path

import apsw
import msgspec

from aios_kernel.access.seals import Seals
from aios_kernel.client import Client
from aios_kernel.syscalls import AccessVerify, AuditVerdict


def unsound(home: Path, client: Client) -> list[str]:
    """What is damaged, in words; the kernel runs meanwhile."""
    verdict = client.call(AccessVerify())
    assert isinstance(verdict, AuditVerdict)
    wrong = [] if verdict.ok else [f"audit log: {verdict.why}"]
    return wrong + damaged_databases(home) + _unreadable(home)


def damaged_databases(home: Path) -> list[str]:
    """What SQLite's own check finds in the databases of a folder."""
    wrong: list[str] = []
    for path in sorted(home.glob("*.db")):
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            db.set_busy_timeout(5000)
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check")]
        finally:
            db.close(True)
        if found != ["ok"]:
            wrong.append(f"{path.name}: {found[:3]}")
    return wrong


def _unreadable(home: Path) -> list[str]:
    wrong: list[str] = []
    try:
        Seals(home / "audit.seals").lasting()
    except ValueError as forged:
        wrong.append(str(forged))
    for path in (home / "traces").glob("*.jsonl"):
        lines = path.read_bytes().split(b"\n")[:-1]  # the last line of a kernel that was killed may be torn
        wrong += [f"{path.name}: a line in it is torn" for line in lines if not _is_json(line)]
    return wrong


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except msgspec.DecodeError:
        return False
    return True
