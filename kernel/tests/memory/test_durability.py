"""Restarts, SIGKILL, a lost or damaged index, another embedding model, a full disk."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aios_kernel.errors import InternalError
from aios_kernel.memory import ChromaIndex, ChromaStore, ExactIndex, HashEmbedder, MemoryManager, Space
from aios_kernel.memory.index import Vectors
from aios_kernel.syscalls import MemoryAdd, MemorySearch, MemoryUpdate

MakeManager = Callable[[Path], MemoryManager]
NS = "agent/alice"
SPACE = Space("u", NS)


async def texts(memory: MemoryManager, query: str, k: int = 1) -> list[str]:
    return [note.text for note in (await memory.search("u", NS, MemorySearch(query=query, k=k))).notes]


def with_chroma(home: Path) -> MemoryManager:
    return MemoryManager(home, HashEmbedder(), lambda model: ChromaIndex(home / "chroma", model), index_from=0)


@pytest.mark.parametrize("indexed", [False, True])
async def test_notes_survive_a_restart(make_memory: MakeManager, tmp_path: Path, indexed: bool) -> None:
    first = make_memory(tmp_path)
    for n in range(30):
        await first.add("u", NS, "alice", MemoryAdd(text=f"fact{n} about item{n}", id=f"n{n}", metadata={"n": n}))
    if indexed:
        await first._indexer.prepare(SPACE)
    await first.update("u", NS, MemoryUpdate(id="n3", text="a parrot"))
    await first.delete("u", NS, "n4")
    await first.close()
    second = make_memory(tmp_path)
    assert await texts(second, "fact7 item7") == ["fact7 about item7"]
    assert await texts(second, "parrot") == ["a parrot"]
    assert len(await texts(second, "fact", k=99)) == 29
    assert "fact4 about item4" not in await texts(second, "fact4 item4", k=99)
    found = await second.search("u", NS, MemorySearch(query="fact", filter={"n": 9}))
    assert [note.metadata for note in found.notes] == [{"n": 9}]
    await second.close()


async def test_the_index_follows_without_being_asked(tmp_path: Path) -> None:
    memory = with_chroma(tmp_path)
    for n in range(20):
        await memory.add("u", NS, "alice", MemoryAdd(text=f"fact {n}"))
    deadline = time.monotonic() + 20
    while not memory._indexer.is_open(SPACE) or memory._indexer.recent.of(SPACE):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert await memory._db.read(lambda db: db.execute("SELECT count(*) FROM outbox").fetchone()[0]) == 0
    await memory.close()
    index = ChromaStore(tmp_path / "chroma", HashEmbedder.name)
    assert index.count(SPACE) == 20
    index.close()


@pytest.mark.parametrize("damage", ["lost", "missing vector", "stray vector"])
async def test_an_index_that_disagrees_is_rebuilt(tmp_path: Path, damage: str) -> None:
    first = with_chroma(tmp_path)
    for n in range(40):
        await first.add("u", NS, "alice", MemoryAdd(text=f"fact{n} item{n}", id=f"n{n}"))
    await first._indexer.prepare(SPACE)
    await first.close()
    if damage == "lost":
        shutil.rmtree(tmp_path / "chroma")
    else:
        index = ChromaStore(tmp_path / "chroma", HashEmbedder.name)
        if damage == "missing vector":
            index.delete(SPACE, ["n7"])
        else:
            index.add(SPACE, ["stray"], HashEmbedder().embed(["fact7 item7"]))
        index.close()
    second = MemoryManager(
        tmp_path, HashEmbedder(), lambda model: ChromaIndex(tmp_path / "chroma", model), max_vectors=10
    )
    for n in (0, 7, 39):
        assert await texts(second, f"fact{n} item{n}") == [f"fact{n} item{n}"]
    assert len(await texts(second, "fact7", k=99)) == 40
    await second.close()


async def test_a_broken_index_is_a_typed_error_and_the_rows_live_on(tmp_path: Path) -> None:
    first = with_chroma(tmp_path)
    await first.add("u", NS, "alice", MemoryAdd(text="kept", id="k"))
    await first._indexer.prepare(SPACE)
    await first.close()
    shutil.rmtree(tmp_path / "chroma")
    (tmp_path / "chroma").write_text("not a folder")
    second = with_chroma(tmp_path)
    with pytest.raises(InternalError) as caught:
        await second._indexer.prepare(SPACE)
    assert "delete" in (caught.value.fix or "")
    assert await texts(second, "kept") == ["kept"]  # small spaces do not need it
    await second.add("u", NS, "alice", MemoryAdd(text="more"))
    await second.close()
    (tmp_path / "chroma").unlink()
    third = with_chroma(tmp_path)
    assert sorted(await texts(third, "kept", k=5)) == ["kept", "more"]
    await third.close()


class _Shifted:
    """Another model: other vectors, of another length."""

    name = "shifted"

    def embed(self, texts: list[str]) -> Vectors:
        return HashEmbedder().embed([f"{text} shifted" for text in texts])[:, :128]

    def count_tokens(self, texts: list[str]) -> int:
        return len(texts)


async def test_another_model_embeds_everything_anew(make_index: Callable, tmp_path: Path) -> None:
    first = MemoryManager(tmp_path, HashEmbedder(), lambda model: make_index(tmp_path, model))
    calls = [MemoryAdd(text=f"fact{n} item{n}", embed=n % 3 > 0) for n in range(600)]
    await asyncio.gather(*(first.add("u", NS, "alice", call) for call in calls))
    await first.close()
    for embedder in (_Shifted(), HashEmbedder()):
        memory = MemoryManager(tmp_path, embedder, lambda model: make_index(tmp_path, model))
        assert await texts(memory, "fact301 item301") == ["fact301 item301"]  # by its words, until it has a vector
        await memory.add("u", NS, "alice", MemoryAdd(text=f"by {embedder.name}"))
        while (progress := await memory.progress()).left:
            assert 0 < progress.left <= progress.total
            await asyncio.sleep(0.01)
        assert progress.model == embedder.name
        assert await texts(memory, "fact301 item301") == ["fact301 item301"]
        assert await texts(memory, f"by {embedder.name}") == [f"by {embedder.name}"]
        models = await memory._db.read(lambda db: {row[0] for row in db.execute("SELECT DISTINCT model FROM notes")})
        assert models == {None, embedder.name}
        await memory.close()


async def test_a_full_disk_is_a_typed_error_and_nothing_is_lost(tmp_path: Path) -> None:
    memory = MemoryManager(tmp_path, HashEmbedder(), lambda model: ExactIndex())
    await memory.add("u", NS, "alice", MemoryAdd(text="before"))
    writer = memory._db._writer._db
    writer.pragma("max_page_count", writer.pragma("page_count") + 4)
    results = await asyncio.gather(
        *(memory.add("u", NS, "alice", MemoryAdd(text="x" * 50_000)) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(error, InternalError) and "no space" in error.message for error in results)
    assert await texts(memory, "before", k=9) == ["before"]
    writer.pragma("max_page_count", 1_000_000)
    await memory.add("u", NS, "alice", MemoryAdd(text="after"))
    assert sorted(await texts(memory, "before", k=9)) == ["after", "before"]
    await memory.close()


_WRITER = """
import asyncio, sys
from pathlib import Path
from aios_kernel.memory import ChromaIndex, HashEmbedder, MemoryManager
from aios_kernel.syscalls import MemoryAdd, MemoryUpdate

async def worker(memory, tag):
    for n in range(1_000_000):
        key = f"{tag}x{n}"
        await memory.add("u", "agent/alice", "a", MemoryAdd(text=f"{key} draft", id=key))
        if n % 3 == 0:
            await memory.update("u", "agent/alice", MemoryUpdate(id=key, text=f"{key} final"))
            print(f"{key} final", flush=True)
        elif n % 3 == 1:
            await memory.delete("u", "agent/alice", key)
            print(f"{key} gone", flush=True)
        else:
            print(f"{key} draft", flush=True)

async def main():
    home = Path(sys.argv[1])
    memory = MemoryManager(home, HashEmbedder(), lambda model: ChromaIndex(home / "chroma", model), index_from=0)
    await asyncio.gather(*(worker(memory, f"c{sys.argv[2]}w{w}") for w in range(4)))

asyncio.run(main())
"""


def _run_and_kill(home: Path, cycle: int, seconds: float) -> list[str]:
    """Let four workers run, SIGKILL the process, and return the acknowledged lines."""
    command = [sys.executable, "-c", _WRITER, str(home), str(cycle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        return (first + child.stdout.read()).split("\n")[:-1]  # a torn last line was not acknowledged


async def test_kill_9_loses_no_acknowledged_note(tmp_path: Path) -> None:
    expected: dict[str, str] = {}
    for cycle in range(2):
        seconds = random.Random(cycle).uniform(1.0, 2.5)  # past the indexer's first second
        expected |= {line.split()[0]: line.split()[1] for line in _run_and_kill(tmp_path, cycle, seconds)}
        memory = with_chroma(tmp_path)
        rows = {note.id: note.text for note in (await memory.search("u", NS, MemorySearch(k=10**6))).notes}
        for key, state in expected.items():
            assert rows.get(key) == (None if state == "gone" else f"{key} {state}")
        kept = [key for key, state in expected.items() if state != "gone"]
        for key in random.Random(cycle).sample(kept, min(40, len(kept))):
            assert await texts(memory, f"{key} {expected[key]}") == [f"{key} {expected[key]}"]
        assert len(await texts(memory, "draft final", k=10**6)) == len(rows)
        await memory._indexer.prepare(SPACE)
        assert memory._indexer._index.count(SPACE) == len(rows)
        await memory.close()
    assert len(expected) > 30
