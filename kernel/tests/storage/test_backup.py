"""A backup of a data directory in use, and what comes back from it."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from aios_kernel import backup
from aios_kernel.access import AccessManager
from aios_kernel.errors import ConfigError, InternalError, InvalidRequest, NotFound
from aios_kernel.memory import ExactIndex, HashEmbedder, MemoryManager
from aios_kernel.storage import SqliteStorage
from aios_kernel.syscalls import MemoryAdd, MemorySearch


def _memory(home: Path) -> MemoryManager:
    return MemoryManager(home, HashEmbedder(), lambda model: ExactIndex())


async def test_what_was_acknowledged_before_a_backup_is_in_it(tmp_path: Path) -> None:
    home, copy, again = tmp_path / "home", tmp_path / "copy", tmp_path / "again"
    home.mkdir()
    memory, storage, access = _memory(home), SqliteStorage(home / "storage.db"), AccessManager(home / "access.db")
    await storage.put("u", "agent/a", "plan.txt", b"one")
    await access.grant("u", "a", "b", "agent/a", ["read"])
    written: list[str] = []
    progress = asyncio.Condition()

    async def reach(count: int) -> None:
        async with progress:
            await progress.wait_for(lambda: len(written) >= count)

    async def keep_writing() -> None:
        while True:
            note = await memory.add("u", "agent/a", "a", MemoryAdd(text=f"fact{len(written)} item{len(written)}"))
            written.append(note.text)
            async with progress:
                progress.notify_all()

    writer = asyncio.ensure_future(keep_writing())
    await reach(50)
    before = list(written)
    manifest = await asyncio.to_thread(backup.save, home, copy)
    await reach(len(written) + 5)
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    await memory.close()
    await storage.close()
    await access.close()
    assert [kept.name for kept in manifest.databases] == ["access.db", "memory.db", "storage.db"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in copy.glob("*.db"))

    assert backup.restore(copy, again) == manifest
    memory, storage, access = _memory(again), SqliteStorage(again / "storage.db"), AccessManager(again / "access.db")
    notes = [note.text for note in (await memory.search("u", "agent/a", MemorySearch(k=10_000))).notes]
    assert notes[: len(before)] == before
    assert notes == written[: len(notes)]  # a moment between two commits
    found = (await memory.search("u", "agent/a", MemorySearch(query="fact7 item7", k=1))).notes
    assert [note.text for note in found] == ["fact7 item7"]
    assert (await storage.get("u", "agent/a", "plan.txt")).data == b"one"
    access.check("u", "b", "g", "agent/a", "read")
    for manager in (memory, storage, access):
        await manager.close()


async def test_what_cannot_be_saved_or_restored_is_refused(tmp_path: Path) -> None:
    home, copy = tmp_path / "home", tmp_path / "copy"
    home.mkdir()
    with pytest.raises(NotFound, match="no data in"):
        backup.save(home, copy)
    storage = SqliteStorage(home / "storage.db")
    await storage.put("u", "agent/a", "plan.txt", b"one")
    await storage.close()
    backup.save(home, copy)
    with pytest.raises(InvalidRequest, match="something in it"):
        backup.save(home, copy)
    with pytest.raises(InvalidRequest, match=r"has data: storage\.db"):
        backup.restore(copy, home)
    with pytest.raises(NotFound, match="no finished backup"):
        backup.restore(tmp_path / "nothing", tmp_path / "new")
    with (copy / "storage.db").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    with pytest.raises(InvalidRequest, match="not what was saved"):
        backup.restore(copy, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (home / "access.db").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(InternalError, match="damaged or no database"):
        backup.save(home, tmp_path / "another")
    with pytest.raises(NotFound):
        backup.restore(tmp_path / "another", tmp_path / "new")


async def test_half_a_restore_is_no_data_until_it_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, again = tmp_path / "home", tmp_path / "again"
    home.mkdir()
    for name in ("access", "storage"):
        storage = SqliteStorage(home / f"{name}.db")
        await storage.put("u", "agent/a", "plan.txt", b"one")
        await storage.close()
    backup.save(home, tmp_path / "copy")
    await asyncio.sleep(0.01)
    backup.save(home, tmp_path / "other")

    def dies(point: str) -> None:
        if point == "restore.named":
            raise OSError("the disk went away")

    monkeypatch.setattr(backup, "failpoint", dies)
    with pytest.raises(OSError, match="went away"):
        backup.restore(tmp_path / "copy", again)
    monkeypatch.undo()
    assert [path.name for path in again.glob("*.db")] == ["access.db"]
    with pytest.raises(ConfigError, match="interrupted") as caught:
        backup.refuse_half_restored(again)
    assert "aios restore" in (caught.value.fix or "")
    with pytest.raises(InvalidRequest, match="has data"):
        backup.restore(tmp_path / "other", again)
    backup.restore(tmp_path / "copy", again)
    backup.refuse_half_restored(again)
    storage = SqliteStorage(again / "storage.db")
    assert (await storage.get("u", "agent/a", "plan.txt")).data == b"one"
    await storage.close()
