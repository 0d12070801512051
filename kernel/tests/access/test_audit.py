"""The audit log: one record each, a chain that shows every change, and no syscall that waits for it."""

from __future__ import annotations

import asyncio
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import apsw
import pytest

from aios_kernel.access import AuditEntry, AuditLog
from aios_kernel.errors import Cancelled, InternalError


def entry(n: int = 0, principal: str = "u", agent: str = "alice", **changes: object) -> AuditEntry:
    made = AuditEntry(1000.0 + n, principal, agent, "p1", "memory.add", f"agent/alice/{n}", "ok", 0.001, 0.25)
    return made._replace(**changes)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[AuditLog]:
    audit = AuditLog(tmp_path / "audit.db")
    yield audit
    await audit.close()


async def test_the_tail_is_newest_first_and_complete(log: AuditLog) -> None:
    for n in range(250):
        log.append(entry(n))
    records = await log.tail("u", 100)
    assert [record.seq for record in records] == list(range(250, 150, -1))
    newest = records[0]
    assert (newest.time_s, newest.principal, newest.agent, newest.program) == (1249.0, "u", "alice", "p1")
    assert (newest.syscall, newest.resource, newest.outcome) == ("memory.add", "agent/alice/249", "ok")
    assert (newest.queued_s, newest.ran_s) == (0.001, 0.25)
    assert len({record.digest for record in records}) == 100
    assert (await log.verify()).ok


async def test_a_principal_sees_its_own_records_only(log: AuditLog) -> None:
    for n in range(30):
        log.append(entry(n, principal="uvw"[n % 3], agent="ab"[n % 2]))
    assert [r.principal for r in await log.tail("v")] == ["v"] * 10
    assert {r.agent for r in await log.tail("v", agent="a")} == {"a"}
    assert len(await log.tail("v", agent="a")) == 5
    assert await log.tail("x") == []
    assert await log.tail("v", limit=-1) == []


async def test_records_arrive_within_a_second_without_a_flush(log: AuditLog, tmp_path: Path) -> None:
    log.append(entry())
    db = apsw.Connection(str(tmp_path / "audit.db"))
    deadline = time.monotonic() + 5
    began = time.monotonic()
    while not db.execute("SELECT count(*) FROM audit").fetchone()[0]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert time.monotonic() - began < 1
    db.close()


async def test_an_append_takes_microseconds(log: AuditLog) -> None:
    def once() -> float:
        began = time.perf_counter()
        for n in range(1000):
            log.append(AuditEntry(1000.0, "u", "alice", "p1", "llm.chat", "", "ok", 0.0, float(n)))
        return (time.perf_counter() - began) / 1000

    assert min(once() for _ in range(10)) < 25e-6
    assert len(await log.tail("u", 20_000)) == 10_000


async def test_the_chain_goes_on_after_a_restart(tmp_path: Path) -> None:
    for round_ in range(3):
        audit = AuditLog(tmp_path / "audit.db")
        for n in range(5):
            audit.append(entry(n))
        if round_ == 2:
            assert (await audit.verify()).ok
            assert [record.seq for record in await audit.tail("u")] == list(range(15, 0, -1))
        await audit.close()
    with pytest.raises(Cancelled):
        audit.append(entry())


async def test_hostile_values_are_recorded_and_verify(log: AuditLog) -> None:
    for text in ("\ud800", "a\0b", "x" * 100_000, "'; DROP TABLE audit; --", "\U0010ffff"):
        log.append(entry(agent=text, resource=text, outcome=text))
    log.append(entry(queued_s=math.nan, ran_s=math.inf, time_s=3))
    log.append(entry(program=None))
    records = await log.tail("u")
    assert len(records) == 7
    assert records[5].agent == "a\0b"
    assert (records[1].queued_s, records[1].ran_s, records[1].time_s) == (0.0, 0.0, 3.0)
    assert (await log.verify()).ok


def _tamper(name: str) -> Callable[[apsw.Connection, int], int | None]:
    """The change, which returns the sequence number that verification must name."""

    def edit(db: apsw.Connection, seq: int) -> int:
        db.execute("UPDATE audit SET outcome = 'access_denied' WHERE seq = ?", (seq,))
        return seq

    def number(db: apsw.Connection, seq: int) -> int:
        db.execute("UPDATE audit SET ran_s = ran_s + 1e-9 WHERE seq = ?", (seq,))
        return seq

    def delete(db: apsw.Connection, seq: int) -> int:
        db.execute("DELETE FROM audit WHERE seq = ?", (seq,))
        return seq

    def delete_and_close_up(db: apsw.Connection, seq: int) -> int:
        db.execute("DELETE FROM audit WHERE seq = ?", (seq,))
        db.execute("UPDATE audit SET seq = -(seq - 1) WHERE seq > ?", (seq,))
        db.execute("UPDATE audit SET seq = -seq WHERE seq < 0")
        return seq

    def swap(db: apsw.Connection, seq: int) -> int:
        db.execute("UPDATE audit SET seq = -seq WHERE seq IN (?, ?)", (seq, seq + 1))
        db.execute("UPDATE audit SET seq = ? WHERE seq = ?", (seq + 1, -seq))
        db.execute("UPDATE audit SET seq = ? WHERE seq = ?", (seq, -seq - 1))
        return seq

    def truncate(db: apsw.Connection, seq: int) -> int:
        db.execute("DELETE FROM audit WHERE seq >= ?", (seq,))
        return seq

    def append(db: apsw.Connection, seq: int) -> int:
        del seq
        db.execute("INSERT INTO audit SELECT 41, time_s, principal, agent, program, syscall, resource, outcome,"
                   " queued_s, ran_s, digest FROM audit WHERE seq = 40")  # fmt: skip
        return 41

    def digest(db: apsw.Connection, seq: int) -> int:
        db.execute("UPDATE audit SET digest = zeroblob(32) WHERE seq = ?", (seq,))
        return seq

    return locals()[name]


@pytest.mark.parametrize(
    "name", ["edit", "number", "delete", "delete_and_close_up", "swap", "truncate", "append", "digest"]
)
async def test_every_change_is_found(tmp_path: Path, name: str) -> None:
    audit = AuditLog(tmp_path / "audit.db")
    for n in range(40):
        audit.append(entry(n))
    assert (await audit.verify()).ok
    db = apsw.Connection(str(tmp_path / "audit.db"))
    bad = _tamper(name)(db, random.Random(name).randrange(1, 39))
    db.close()
    verdict = await audit.verify()
    assert (verdict.ok, verdict.bad_seq) == (False, bad)
    assert verdict.why
    await audit.close()


async def test_a_full_disk_loses_no_record(log: AuditLog) -> None:
    log.append(entry(1))
    await log.flush()
    pages = log._db.pragma("page_count")
    log._db.pragma("max_page_count", pages)
    for n in range(2000):
        log.append(entry(n))
    with pytest.raises(InternalError, match="no space"):
        await log.flush()
    log.append(entry(9999))
    log._db.pragma("max_page_count", 1_000_000)
    records = await log.tail("u", 5000)
    assert len(records) == 2002
    assert records[0].resource == "agent/alice/9999"
    assert (await log.verify()).ok


_WRITER = """
import asyncio, sys
from pathlib import Path
from aios_kernel.access import AuditEntry, AuditLog

async def main() -> None:
    audit = AuditLog(Path(sys.argv[1]))
    n = 0
    while True:
        for _ in range(20):
            audit.append(AuditEntry(float(n), "u", "a", "p", "llm.chat", str(n), "ok", 0.0, 0.0))
            n += 1
        await audit.flush()
        print(n, flush=True)

asyncio.run(main())
"""


def _run_and_kill(path: Path, seconds: float) -> int:
    """Let a writer run for a while, SIGKILL it, and return how many records it had seen flushed."""
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        return int([first, *child.stdout.read().split()][-1])


async def test_kill_9_loses_no_flushed_record_and_breaks_no_chain(tmp_path: Path) -> None:
    path, last = tmp_path / "audit.db", 0
    for cycle in range(3):
        flushed = _run_and_kill(path, random.Random(cycle).uniform(0.05, 0.3))
        audit = AuditLog(path)
        assert (await audit.verify()).ok
        newest = (await audit.tail("u", 1))[0].seq
        assert newest >= last + flushed
        last = newest
        await audit.close()
