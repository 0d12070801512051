"""Kills of a kernel under load: a few here, a hundred in the slow suite, 2,000 by `make soak`."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from aios_evals.reliability import kills
from aios_evals.reliability.approver import Approver, Desk
from aios_evals.reliability.ledger import Ledger
from aios_evals.reliability.points import POINTS
from aios_evals.reliability.victim import Victim, config_of
from aios_kernel.client import Client
from aios_kernel.syscalls import AgentSpawn, MemoryAdd, MemoryDelete

OF_THE_KERNEL = [point for point in POINTS if point.reached != "snapshot"]


@pytest.fixture(autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("x"))  # short: the path of a socket has its limit


def test_a_few_kills_lose_nothing() -> None:
    rows, complaints = kills.run(
        6, points=tuple(p for p in POINTS if p.name in ("memory.db-wal.write", "audit.sealing"))
    )
    assert complaints == []
    assert rows[-1]["case"] == "all"
    assert rows[-1]["kills"] == 6
    assert rows[-1]["unreached"] == 0
    assert rows[-1]["acknowledged"] > 0


def test_an_approval_that_was_acknowledged_survives_kills() -> None:
    """The pins of an MCP server: all of what was approved last, or all of what is under way."""
    names = ("mcp.unpinned", "mcp.after_commit", "mcp.db-wal.write")
    rows, complaints = kills.run(6, points=tuple(p for p in POINTS if p.name in names))
    assert complaints == []
    assert rows[-1]["unreached"] == 0
    assert rows[-1]["approved"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_kills_lose_nothing_and_every_failpoint_is_reached() -> None:
    rows, complaints = kills.run(max(100, 2 * len(OF_THE_KERNEL)))
    assert complaints == []
    every = {row["case"]: row for row in rows}
    assert set(every) == {"all", "random", *(point.name for point in OF_THE_KERNEL)}
    assert [case for case, row in every.items() if row["unreached"]] == []
    assert every["all"]["acknowledged"] > 1_000


def test_a_loss_is_seen(tmp_path: Path) -> None:
    """The suite itself can fail: what was acknowledged and then taken away by somebody else is missed."""
    victim = Victim(config_of(tmp_path / "home"))
    victim.start()
    try:
        connection = victim.connect()
        client, ledger = Client(connection), Ledger("w0")
        client.call(AgentSpawn(program="p", agent="w0"))
        change = {("note", "n1"): ("kept", None)}
        ledger.begin(change)
        client.call(MemoryAdd("kept", id="n1"), program="p")
        ledger.end(change)
        assert ledger.compare(client, "look1") == []
        client.call(MemoryDelete("n1"), program="p")
        (complaint,) = ledger.compare(client, "look2")
        assert "is none of" in complaint
        connection.close()
    finally:
        victim.kill()
    assert victim.killed


def test_a_lost_pin_is_seen(tmp_path: Path) -> None:
    """Somebody takes one of the approved tools out of the database while no kernel runs."""
    home, ledger, victim = tmp_path / "home", Ledger("person"), Victim(config_of(tmp_path / "home"))
    desk = Desk(home)
    desk.open(True)
    victim.start()
    try:
        with contextlib.closing(victim.connect()) as connection:
            approver = Approver(desk, ledger, Client(connection), "p", 0)
            assert approver.approved.wait(60), approver.error or approver.fault
            approver.stop.set()
            approver.join()
            assert ledger.compare(Client(connection), "look1") == []
        victim.kill()
        with contextlib.closing(sqlite3.connect(home / "mcp.db")) as db:
            db.execute("DELETE FROM pins WHERE tool = (SELECT min(tool) FROM pins)")
            db.commit()
        victim.start()
        with contextlib.closing(victim.connect()) as connection:
            (complaint,) = ledger.compare(Client(connection), "look2")
        assert "is none of" in complaint
    finally:
        victim.kill()
