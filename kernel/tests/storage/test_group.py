"""Writes that wait together are committed and answered together, each with its own end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from aios_kernel._database import Database
from aios_kernel.errors import InvalidRequest


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(tmp_path / "x.db", "CREATE TABLE t (a TEXT)", 1)
    yield made
    made.close()


def _insert(text: str) -> Callable[[apsw.Connection], Any]:
    return lambda db: db.execute("INSERT INTO t VALUES (?)", (text,))


async def _rows(database: Database) -> list[str]:
    return await database.read(lambda db: [row[0] for row in db.execute("SELECT a FROM t ORDER BY a")])


async def test_one_that_is_cancelled_or_fails_leaves_its_neighbours_alone(database: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def refuse(db: apsw.Connection) -> None:
        _insert("refused")(db)
        raise InvalidRequest("no", fix="none")

    first = asyncio.create_task(database.write(lambda db: (begun.set(), go_on.wait(60))))
    assert await asyncio.to_thread(begun.wait, 60)
    tasks = [asyncio.create_task(database.write(job)) for job in (_insert("gone"), refuse, _insert("kept"))]
    await asyncio.sleep(0)  # each of them has been queued
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    go_on.set()
    await first
    with pytest.raises(InvalidRequest, match="no"):
        await tasks[1]
    await tasks[2]
    assert await _rows(database) == ["kept"]


async def test_a_follow_up_comes_before_every_answer_even_if_nobody_waits(database: Database) -> None:
    begun, go_on, told = threading.Event(), threading.Event(), list[str]()
    first = asyncio.create_task(database.write(lambda db: (begun.set(), go_on.wait(60))))
    assert await asyncio.to_thread(begun.wait, 60)
    tasks = [
        asyncio.create_task(database.write(_insert(text), committed=lambda _, text=text: told.append(text)))
        for text in "abc"
    ]
    await asyncio.sleep(0)
    go_on.set()
    await first
    await tasks[0]
    assert told == ["a", "b", "c"]
    await asyncio.gather(*tasks)


def test_writes_of_a_loop_that_has_ended_are_made(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.db", "CREATE TABLE t (a TEXT)", 1)
    begun, go_on = threading.Event(), threading.Event()

    async def leave() -> None:
        asyncio.ensure_future(database.write(lambda db: (begun.set(), go_on.wait(60), _insert("made")(db))))  # noqa: RUF006 - it is left
        await asyncio.to_thread(begun.wait, 60)

    asyncio.run(leave())
    go_on.set()
    database.submit(lambda db: None).result()  # the writer goes on
    assert asyncio.run(_rows(database)) == ["made"]
    database.close()
