"""Mounted folders: their files are found by what they say, and stay in step."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from aios_kernel.errors import ConfigError
from aios_kernel.memory import ExactIndex, HashEmbedder, MemoryManager
from aios_kernel.mounts import Mounts, watching
from aios_kernel.syscalls import MemorySearch, Note

SPACE = "agent/reader/files"


@contextlib.asynccontextmanager
async def mounted(home: Path, folder: Path) -> AsyncGenerator[MemoryManager]:
    memory = MemoryManager(home, HashEmbedder(), lambda model: ExactIndex())
    try:
        async with watching({"agent/reader": str(folder)}, memory, "u"):
            yield memory
    finally:
        await memory.close()


async def notes(memory: MemoryManager, query: str = "", k: int = 1000) -> list[Note]:
    return (await memory.search("u", SPACE, MemorySearch(query=query, k=k))).notes


async def until(memory: MemoryManager, paths: set[str], text: str = "", count: int | None = None) -> None:
    """Wait until just these files are indexed, one of them with a text, in so many pieces."""
    async with asyncio.timeout(20):
        while True:
            found = await notes(memory)
            same = {note.metadata["path"] for note in found} == paths and count in (None, len(found))
            if same and any(text in note.text for note in found):
                return
            await asyncio.sleep(0.05)


async def test_files_are_found_by_what_they_say_and_stay_in_step(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "papers"
    (folder / "deep").mkdir(parents=True)
    home.mkdir()
    (folder / "tea.md").write_text("# Tea\n\nGreen tea is made with water of eighty degrees.\n")
    (folder / "deep" / "long.txt").write_text("\n\n".join(f"paragraph{n} " + "word " * 60 for n in range(20)))
    (folder / ".hidden").write_text("a secret")
    (folder / "picture.bin").write_bytes(b"\xff\xfe\x00")
    (folder / "empty.txt").write_text("")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (tmp_path / "outside.txt").write_text("not mounted")
    async with mounted(home, folder) as memory:
        await until(memory, {"tea.md", "deep/long.txt"})
        (found,) = await notes(memory, "how hot is the water for green tea?", 1)
        assert (found.metadata["path"], found.metadata["line"], found.source) == ("tea.md", 1, "tea.md")
        (found,) = await notes(memory, "paragraph13", 1)
        assert "paragraph13" in found.text
        lines = (folder / "deep" / "long.txt").read_text().splitlines()
        assert lines[found.metadata["line"] - 1].startswith(found.text[:12])
        pieces = len(await notes(memory))

        (folder / "tea.md").write_text("Black tea wants boiling water.\n")
        await until(memory, {"tea.md", "deep/long.txt"}, "Black tea")
        assert not any("eighty" in note.text for note in await notes(memory))
        (folder / "deep" / "long.txt").write_text("short now")
        await until(memory, {"tea.md", "deep/long.txt"}, "short now", 2)
        assert pieces > 10
        (folder / "deep" / "new.txt").write_text("zanzibar")
        os.remove(folder / "tea.md")
        await until(memory, {"deep/long.txt", "deep/new.txt"}, "zanzibar")


async def test_what_is_indexed_already_is_not_touched_at_the_next_start(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "papers"
    folder.mkdir()
    home.mkdir()
    (folder / "a.txt").write_text("one")
    (folder / "b.txt").write_text("two")
    async with mounted(home, folder) as memory:
        await until(memory, {"a.txt", "b.txt"})
    between = time.time()
    (folder / "b.txt").unlink()
    (folder / "c.txt").write_text("three")
    async with mounted(home, folder) as memory:
        await until(memory, {"a.txt", "c.txt"})
        by_path = {note.metadata["path"]: note for note in await notes(memory)}
    assert by_path["a.txt"].updated_s < between < by_path["c.txt"].updated_s


async def test_a_mount_that_cannot_be_is_refused(tmp_path: Path) -> None:
    memory = MemoryManager(tmp_path, HashEmbedder(), lambda model: ExactIndex())
    for space, folder in (("agent/a", "/nowhere"), ("a", str(tmp_path)), ("agent/a/b", str(tmp_path)), ("", "/")):
        with pytest.raises(ConfigError, match="mounts"):
            Mounts({space: folder}, memory, "u")
    await memory.close()
