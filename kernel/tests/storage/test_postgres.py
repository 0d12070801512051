"""What only the PostgreSQL backend can show: several kernels at once, a server that goes away, newer tables."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from aios_kernel.errors import ConfigError, InternalError
from aios_kernel.storage import PostgresStorage

A = ("u", "agent/alice")


async def test_two_kernels_write_one_file_without_gaps(postgres_url: str) -> None:
    both = [PostgresStorage(postgres_url, 500), PostgresStorage(postgres_url, 500)]
    infos = await asyncio.gather(*(both[n % 2].put(*A, "two", b"x" * 5) for n in range(60)))
    assert sorted(info.version for info in infos) == list(range(1, 61))
    assert await both[0].usage(*A) == await both[1].usage(*A) == 300
    for storage in both:
        assert await storage.delete(*A, "two") in (0, 1)
        await storage.close()


async def test_a_server_that_goes_away_is_a_typed_error(
    brief_postgres: Callable[[], AbstractContextManager[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aios_kernel.storage.postgres._PATIENCE_S", 1.0)
    with brief_postgres() as url:
        storage = PostgresStorage(url)
        await storage.put(*A, "f", b"one")
    with pytest.raises(InternalError, match="PostgreSQL") as caught:
        await storage.put(*A, "f", b"two")
    assert "storage_url" in (caught.value.fix or "")
    await storage.close()
    never = PostgresStorage(url)
    with pytest.raises(InternalError, match="PostgreSQL"):
        await never.get(*A, "f")
    await never.close()


async def test_tables_of_a_newer_release_are_refused(postgres_url: str) -> None:
    first = PostgresStorage(postgres_url)
    await first.list(*A)
    await first.close()
    import psycopg

    async with await psycopg.AsyncConnection.connect(postgres_url) as db:
        await db.execute("UPDATE aios_storage SET version = 99")
    second = PostgresStorage(postgres_url)
    with pytest.raises(ConfigError, match="version 99"):
        await second.list(*A)
    await second.close()
    async with await psycopg.AsyncConnection.connect(postgres_url) as db:
        await db.execute("UPDATE aios_storage SET version = 1")
