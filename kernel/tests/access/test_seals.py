"""Seals: whoever can write the database but has not the key is found out, a crash is no false alarm."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from aios_kernel.access import AuditEntry, AuditLog
from aios_kernel.access.chain import START, Link, lengthen
from aios_kernel.access.redaction import redacted
from aios_kernel.access.seals import EVERY, Seal, Sealer, Seals
from aios_kernel.access.verify import verify
from aios_kernel.errors import ConfigError

RECORDS = 60
Row = list[Any]


def entry(n: int) -> AuditEntry:
    return AuditEntry(1000.0 + n, "u", "alice", "p1", "memory.add", f"agent/alice/{n}", "ok", 0.001, 0.25)


async def written(path: Path, records: int = RECORDS) -> Seals:
    """A log of three sessions, each of which left a lasting seal."""
    for part in range(3):
        audit = AuditLog(path)
        for n in range(records // 3):
            audit.append(entry(part * records + n))
        await audit.close()
    return Seals(path.with_suffix(".seals"))


# --- mutations ------------------------------------------------------------------------------------------------------


def flip(rows: list[Row], chooser: random.Random) -> None:
    row, column = chooser.choice(rows), chooser.randrange(11)
    value = row[column]
    if isinstance(value, bytes):
        place = chooser.randrange(len(value))
        row[column] = value[:place] + bytes([value[place] ^ 1 << chooser.randrange(8)]) + value[place + 1 :]
    elif isinstance(value, str):
        row[column] = value + chooser.choice("abc")
    else:
        row[column] = value + chooser.choice((1, -1)) * (1000 if column == 0 else 1e-3)


def delete(rows: list[Row], chooser: random.Random) -> None:
    del rows[chooser.randrange(len(rows))]


def close_up(rows: list[Row], chooser: random.Random) -> None:
    delete(rows, chooser)
    renumber(rows)


def swap(rows: list[Row], chooser: random.Random) -> None:
    one, other = chooser.sample(range(len(rows)), 2)
    rows[one], rows[other] = rows[other], rows[one]
    renumber(rows)


def truncate(rows: list[Row], chooser: random.Random) -> None:
    del rows[chooser.randrange(len(rows)) :]


def append(rows: list[Row], chooser: random.Random) -> None:
    rows.append([rows[-1][0] + 1, *chooser.choice(rows)[1:-1], rows[-1][-1]])


def insert(rows: list[Row], chooser: random.Random) -> None:
    rows.insert(chooser.randrange(len(rows)), list(chooser.choice(rows)))
    renumber(rows)


def renumber(rows: list[Row]) -> None:
    for seq, row in enumerate(rows, 1):
        row[0] = seq


MUTATIONS: list[Callable[[list[Row], random.Random], None]] = [flip, delete, close_up, swap, truncate, append, insert]


def forge(rows: list[Row]) -> tuple[list[Row], Link]:
    """What somebody does who knows how the chain is made, and has no key."""
    made, end = lengthen([AuditEntry(*row[1:-1]) for row in rows], START)
    return [list(row) for row in made], end


def mutated(db: apsw.Connection, seed: int) -> apsw.Connection:
    """A copy of the log in memory, changed."""
    chooser = random.Random(seed)
    copy = apsw.Connection(":memory:")
    with copy.backup("main", db, "main") as backup:
        backup.step()
    before = [list(row) for row in copy.execute("SELECT * FROM audit ORDER BY seq")]
    rows = [list(row) for row in before]
    while rows == before:
        chooser.choice(MUTATIONS)(rows, chooser)
    rows.sort(key=lambda row: row[0])
    if chooser.random() < 0.5:
        rows, end = forge(rows)
        copy.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?)", end)
    copy.execute("DELETE FROM audit")
    copy.executemany("INSERT OR REPLACE INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    if [list(row) for row in copy.execute("SELECT * FROM audit ORDER BY seq")] == before:
        copy.close()
        return mutated(db, seed + 1_000_003)
    return copy


async def every_mutation_is_found(path: Path, count: int) -> None:
    seals = await written(path)
    db = apsw.Connection(str(path))
    heads, lasting = [seals.head()], seals.lasting()
    assert verify(db, heads, lasting).ok
    missed = 0
    for seed in range(count):
        copy = mutated(db, seed)
        missed += verify(copy, heads, lasting).ok
        copy.close()
    db.close()
    assert missed == 0


async def test_every_mutation_is_found(tmp_path: Path) -> None:
    await every_mutation_is_found(tmp_path / "audit.db", 300)


@pytest.mark.slow
async def test_ten_thousand_mutations_are_found(tmp_path: Path) -> None:
    await every_mutation_is_found(tmp_path / "audit.db", 10_000)


# --- the seals themselves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["head.json", "seals.jsonl"])
async def test_a_changed_seal_is_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / "audit.db"
    seals = await written(path)
    file = path.with_suffix(".seals") / name
    file.write_bytes(file.read_bytes().replace(b'"time_s":1', b'"time_s":2', 1))
    with pytest.raises(ValueError, match="not signed"):
        seals.head() if name == "head.json" else seals.lasting()
    audit = AuditLog(path)
    verdict = await audit.verify()
    await audit.close()
    assert not verdict.ok
    assert "not signed" in verdict.why


async def test_a_seal_of_another_key_is_no_seal(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    await written(path)
    public = (path.with_suffix(".seals") / "audit.pub").read_text().strip()
    path.with_suffix(".key").write_bytes(os.urandom(32))
    Sealer(path.with_suffix(".key"), path.with_suffix(".seals")).settle(Link(1, bytes(32)))
    with pytest.raises(ValueError, match="not signed"):
        Seals(path.with_suffix(".seals"), public).head()


async def test_a_log_cut_while_nobody_ran_tells_so_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    await written(path)
    db = apsw.Connection(str(path))
    end = db.execute("SELECT seq, digest FROM audit WHERE seq = 50").fetchone()
    db.execute("DELETE FROM audit WHERE seq > 50")
    db.execute("UPDATE head SET seq = ?, digest = ?", end)
    db.close()
    for _ in range(2):
        audit = AuditLog(path)
        audit.append(entry(0))
        verdict = await audit.verify()
        await audit.close()
        assert not verdict.ok
        assert "sealed" in verdict.why


async def test_a_crash_between_seal_and_commit_is_no_false_alarm(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    await written(path)
    before = tmp_path / "before.db"
    shutil.copy(path, before)
    sealer = Sealer(path.with_suffix(".key"), path.with_suffix(".seals"))
    end = Link(*apsw.Connection(str(path)).execute("SELECT seq, digest FROM head").fetchone())
    sealer.intend(end, lengthen([entry(1)], end)[1])
    audit = AuditLog(path)
    assert (await audit.verify()).ok
    await audit.close()


async def test_a_log_of_an_earlier_release_tells_from_where_on_it_is_sealed(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    await written(path)
    shutil.rmtree(path.with_suffix(".seals"))
    path.with_suffix(".key").unlink()
    audit = AuditLog(path)
    verdict = await audit.verify()
    await audit.close()
    assert (verdict.ok, verdict.bad_seq) == (False, RECORDS + 1)
    assert "never sealed" in verdict.why


async def test_long_logs_have_lasting_seals_in_between(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    audit = AuditLog(path)
    for n in range(3):
        for m in range(EVERY):
            audit.append(entry(n * EVERY + m))
        await audit.flush()
    assert len(Seals(path.with_suffix(".seals")).lasting()) == 3
    await audit.close()


async def test_key_and_seals_are_private(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    await written(path)
    assert path.with_suffix(".key").stat().st_mode & 0o777 == 0o600
    assert path.with_suffix(".seals").stat().st_mode & 0o777 == 0o700


def test_a_key_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "audit.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match="cannot be sealed"):
        Sealer(tmp_path / "audit.key", tmp_path / "seals")


def test_seals_are_what_they_say() -> None:
    assert Seal((1, "aa"), (2, "bb"), 0.0).ends() == {Link(1, b"\xaa"), Link(2, b"\xbb")}


# --- redaction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://host/?api_key=abcdef123&x=1", "https://host/?api_key=[secret]&x=1"),
        ('{"password": "hunter22", "a": 1}', '{"password": "[secret]", "a": 1}'),
        ("Authorization: Bearer abc.def-ghi", "Authorization: [secret]"),
        ("used bearer abcdefghij", "used bearer [secret]"),
        ("postgres://me:pass@host/db", "postgres://me:[secret]@host/db"),
        ("key sk-proj-abcdefghijklmnop1234 end", "key [secret] end"),
        ("ghp_" + "a" * 36, "[secret]"),
        ("AKIAIOSFODNN7EXAMPLE", "[secret]"),
        ("agent/alice/notes", "agent/alice/notes"),
        ("group/token-counters", "group/token-counters"),
    ],
)
def test_secrets_are_taken_out(text: str, kept: str) -> None:
    assert redacted(text) == kept


async def test_no_secret_reaches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    audit = AuditLog(path)
    audit.append(entry(1)._replace(resource="x" * 1010 + " sk-" + "k" * 40, outcome="token=" + "t" * 40))
    await audit.close()
    content = (tmp_path / "audit.db").read_bytes()  # closed: all of the journal is in it
    assert b"kkkk" not in content
    assert b"tttt" not in content
