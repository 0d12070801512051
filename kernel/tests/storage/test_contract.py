"""The storage contract, over every backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from aios_kernel.errors import Cancelled, InvalidRequest, NotFound, QuotaExceeded
from aios_kernel.storage import MAX_FILE_BYTES, Storage
from aios_kernel.syscalls import MAX_FRAME_BYTES, Done, FileData

MakeStorage = Callable[..., Storage]
A = ("u", "agent/alice")


@pytest.fixture
async def storage(make_storage: MakeStorage, tmp_path: Path) -> AsyncIterator[Storage]:
    made = make_storage(tmp_path)
    yield made
    await made.close()


async def test_what_was_put_is_got(storage: Storage) -> None:
    data = bytes(range(256)) * 3
    info = await storage.put(*A, "notes/a.txt", data)
    assert (info.path, info.version, info.size) == ("notes/a.txt", 1, 768)
    assert await storage.get(*A, "notes/a.txt") == FileData(info=info, data=data)
    assert (await storage.put(*A, "empty", b"")).size == 0
    assert (await storage.get(*A, "empty")).data == b""


async def test_versions_are_kept_and_old_ones_come_back(storage: Storage) -> None:
    for text in (b"one", b"two", b"three"):
        await storage.put(*A, "f", text)
    assert (await storage.get(*A, "f")).data == b"three"
    assert (await storage.get(*A, "f", 1)).data == b"one"
    assert [info.version for info in await storage.versions(*A, "f")] == [3, 2, 1]
    again = await storage.rollback(*A, "f", 2)
    assert (again.version, again.size) == (4, 3)
    assert (await storage.get(*A, "f")).data == b"two"
    assert [info.version for info in await storage.versions(*A, "f")] == [4, 3, 2, 1]


async def test_an_owner_has_no_more_bytes_than_its_quota(make_storage: MakeStorage, tmp_path: Path) -> None:
    storage = make_storage(tmp_path, 100)
    await storage.put(*A, "f", b"x" * 60)
    for call in (storage.put(*A, "g", b"x" * 41), storage.put(*A, "f", b"x" * 60), storage.rollback(*A, "f", 1)):
        with pytest.raises(QuotaExceeded, match="agent/alice"):
            await call
    assert [info.path for info in await storage.list(*A)] == ["f"]
    assert len(await storage.versions(*A, "f")) == 1
    await storage.put("u", "agent/bob", "f", b"x" * 100)
    results = await asyncio.gather(*(storage.put(*A, f"n{n}", b"x" * 10) for n in range(9)), return_exceptions=True)
    assert sum(isinstance(result, QuotaExceeded) for result in results) == 5
    assert await storage.usage(*A) == 100
    await storage.delete(*A, "f")
    assert await storage.usage(*A) == 40
    assert await storage.usage("u", "agent/nobody") == 0
    await storage.put(*A, "f", b"x" * 60)
    await storage.close()


async def test_what_is_missing_is_not_found(storage: Storage) -> None:
    await storage.put(*A, "f", b"x")
    for call in (
        storage.get(*A, "g"),
        storage.get(*A, "f", 2),
        storage.get(*A, "f", 0),
        storage.get(*A, "f", 2**64 - 1),
        storage.versions(*A, "g"),
        storage.rollback(*A, "f", 7),
        storage.rollback(*A, "g", 1),
        storage.get("v", "agent/alice", "f"),
        storage.get("u", "agent/alic", "f"),
    ):
        with pytest.raises(NotFound):
            await call
    assert await storage.delete(*A, "g") == 0
    assert [info.version for info in await storage.versions(*A, "f")] == [1]


async def test_a_listing_takes_the_prefix_literally(storage: Storage) -> None:
    paths = ["a%b", "a_b", "axb", "a/b", "a/c/d", "A/b", "a'b", "a\\b", "ab", "ä", "a\U0010ffff", "a\ud7ff", "b"]
    for path in paths:
        await storage.put(*A, path, b"1")
    await storage.put(*A, "a/b", b"22")
    for prefix in ("", "a", "a%", "a_", "a/", "a/c", "a'", "a\\", "ä", "a\U0010ffff", "a\ud7ff", "A", "z", "a/c/d"):
        listed = await storage.list(*A, prefix)
        assert [info.path for info in listed] == sorted(path for path in paths if path.startswith(prefix)), prefix
    newest = {info.path: (info.version, info.size) for info in await storage.list(*A)}
    assert newest["a/b"] == (2, 2)
    assert newest["b"] == (1, 1)


async def test_a_delete_takes_the_file_and_what_is_below_it(storage: Storage) -> None:
    for path in ("d", "d/x", "d/y/z", "d.txt", "d%x", "dx", "e/d/x"):
        await storage.put(*A, path, b"1")
    await storage.put(*A, "d/x", b"2")
    assert await storage.delete(*A, "d") == 3
    assert [info.path for info in await storage.list(*A)] == ["d%x", "d.txt", "dx", "e/d/x"]
    assert (await storage.put(*A, "d/x", b"new")).version == 1


async def test_owners_and_principals_are_apart(storage: Storage) -> None:
    owners = [("u", "agent/a"), ("u", "agent/a/b"), ("u", "group/a"), ("v", "agent/a"), ("u", "agent/%"), ("u", "")]
    for number, owner in enumerate(owners):
        await storage.put(*owner, "f", str(number).encode())
    for number, owner in enumerate(owners):
        assert (await storage.get(*owner, "f")).data == str(number).encode()
        assert len(await storage.list(*owner)) == 1
    assert await storage.delete("u", "agent/%", "f") == 1
    assert [len(await storage.list(*owner)) for owner in owners] == [1, 1, 1, 1, 0, 1]


@pytest.mark.parametrize(
    "path", ["", "/", "/etc/passwd", "a/", "a//b", "../x", "a/../b", "./a", ".", "a\0b", "a\nb", "\ud800", "x" * 256,
             "x/" * 600 + "y"],
)  # fmt: skip
async def test_bad_paths_are_refused_by_every_call(storage: Storage, path: str) -> None:
    for call in (
        storage.put(*A, path, b""),
        storage.get(*A, path),
        storage.versions(*A, path),
        storage.rollback(*A, path, 1),
        storage.delete(*A, path),
    ):
        with pytest.raises(InvalidRequest):
            await call


async def test_a_bad_prefix_is_refused(storage: Storage) -> None:
    for prefix in ("\0", "\ud800", "x" * 1025):
        with pytest.raises(InvalidRequest):
            await storage.list(*A, prefix)


async def test_the_largest_file_fits_and_one_byte_more_does_not(storage: Storage) -> None:
    data = bytes(MAX_FILE_BYTES)
    path = "/".join(["x" * 200] * 5)
    with pytest.raises(InvalidRequest, match="at most"):
        await storage.put(*A, path, data + b"x")
    await storage.put(*A, path, data)
    read = await storage.get(*A, path)
    assert read.data == data
    assert len(msgspec.msgpack.encode(Done(id=2**60, result=read))) < MAX_FRAME_BYTES
    assert [info.version for info in await storage.versions(*A, path)] == [1]


async def test_writers_of_one_file_each_get_their_version(storage: Storage) -> None:
    infos = await asyncio.gather(*(storage.put(*A, "f", str(n).encode()) for n in range(200)))
    assert sorted(info.version for info in infos) == list(range(1, 201))
    for n, info in enumerate(infos):
        assert (await storage.get(*A, "f", info.version)).data == str(n).encode()


async def test_a_cancelled_caller_leaves_the_store_whole(storage: Storage) -> None:
    tasks = [asyncio.ensure_future(storage.put(*A, f"f{n}", b"x")) for n in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in ended[::2])
    assert {info.path for info in await storage.list(*A)} >= {f"f{n}" for n in range(1, 50, 2)}


async def test_all_is_there_after_a_restart(make_storage: MakeStorage, tmp_path: Path) -> None:
    first = make_storage(tmp_path)
    await first.put(*A, "f", b"one")
    await first.put(*A, "f", b"two")
    await first.close()
    second = make_storage(tmp_path)
    assert [info.version for info in await second.versions(*A, "f")] == [2, 1]
    assert (await second.get(*A, "f")).data == b"two"
    await second.close()


async def test_a_closed_store_says_so(make_storage: MakeStorage, tmp_path: Path) -> None:
    storage = make_storage(tmp_path)
    await storage.close()
    with pytest.raises(Cancelled, match="shutting down"):
        await storage.put(*A, "f", b"")
    with pytest.raises(Cancelled, match="shutting down"):
        await storage.get(*A, "f")
