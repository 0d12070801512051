"""Small spaces are not in the vector index; one that outgrows them is built into it, whatever comes between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from aios_kernel.failpoints import ENVIRONMENT
from aios_kernel.memory import ChromaIndex, ExactIndex, HashEmbedder, MemoryManager, Space, indexer
from aios_kernel.memory.index import Vectors
from aios_kernel.syscalls import MemoryAdd, MemorySearch, MemoryUpdate

NS = "agent/alice"
SPACE = Space("u", NS)


async def add(memory: MemoryManager, count: int, *, start: int = 0) -> None:
    calls = [MemoryAdd(text=f"fact{n} item{n}", id=f"n{n}") for n in range(start, start + count)]
    await asyncio.gather(*(memory.add("u", NS, "alice", call) for call in calls))


async def found(memory: MemoryManager, query: str, k: int = 1) -> list[str]:
    return [note.text for note in (await memory.search("u", NS, MemorySearch(query=query, k=k))).notes]


async def lines(memory: MemoryManager) -> int:
    return await memory._db.read(lambda db: db.execute("SELECT count(*) FROM outbox").fetchone()[0])


def large(home: Path, make: Callable[[], Any] | None = None) -> MemoryManager:
    """Spaces of more than 20 notes are indexed, those of more than 30 searched through the index."""
    make = make or (lambda: ChromaIndex(home / "chroma", HashEmbedder.name))
    return MemoryManager(home, HashEmbedder(), lambda model: make(), index_from=20, max_vectors=30)


async def test_a_small_space_does_without_the_index(tmp_path: Path) -> None:
    memory = MemoryManager(tmp_path, HashEmbedder(), lambda model: pytest.fail("the index was opened"), index_from=40)
    await add(memory, 40)
    await memory.update("u", NS, MemoryUpdate(id="n3", text="a parrot"))
    await memory.delete("u", NS, "n4")
    await memory.settle()
    assert await lines(memory) == 0
    assert await found(memory, "parrot") == ["a parrot"]
    assert len(await found(memory, "fact", k=99)) == 39
    await memory.close()


async def test_a_space_that_grows_is_built_into_the_index_and_followed(make_index: Any, tmp_path: Path) -> None:
    memory = large(tmp_path, lambda: make_index(tmp_path, HashEmbedder.name))
    await add(memory, 25)
    await memory.settle()
    assert memory._indexer._index is not None
    assert memory._indexer._index.count(SPACE) == 25
    await add(memory, 25, start=25)
    await memory.update("u", NS, MemoryUpdate(id="n3", text="a parrot"))
    await memory.delete("u", NS, "n4")
    assert await found(memory, "parrot") == ["a parrot"]
    assert "fact4 item4" not in await found(memory, "fact4 item4", k=99)
    await memory.settle()
    assert memory._indexer._index.count(SPACE) == 49
    assert await lines(memory) == 0
    assert await found(memory, "fact49 item49") == ["fact49 item49"]
    await memory.close()


async def test_a_space_that_had_outgrown_before_is_built_at_the_next_start(tmp_path: Path) -> None:
    first = MemoryManager(tmp_path, HashEmbedder(), lambda model: ExactIndex())
    await add(first, 25)
    await first.close()
    second = large(tmp_path, ExactIndex)
    await second.settle()
    assert second._indexer.is_open(SPACE)
    assert second._indexer._index is not None
    assert second._indexer._index.count(SPACE) == 25
    await second.close()


class _Slow:
    """An index, here kept beyond its end, whose first `add` waits until it may go on."""

    def __init__(self) -> None:
        self.inner = ExactIndex()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def add(self, space: Space, ids: Sequence[str], vectors: Vectors) -> None:
        self.begun.set()
        assert self.go_on.wait(60)
        self.inner.add(space, ids, vectors)

    def close(self) -> None:
        """It is as if it were on a disk."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


async def test_the_end_does_not_wait_for_a_whole_build_which_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "_PORTION", 8)
    index = _Slow()
    memory = large(tmp_path, lambda: index)
    await add(memory, 100)
    assert await asyncio.to_thread(index.begun.wait, 60)
    await memory.update("u", NS, MemoryUpdate(id="n99", text="a parrot"))
    end = memory._indexer._thread.close
    monkeypatch.setattr(memory._indexer._thread, "close", lambda: (index.go_on.set(), end()))  # it has begun to end
    await memory.close()
    assert 8 <= index.count(SPACE) <= 50  # what was begun, not all
    again = large(tmp_path, lambda: index)
    await again.settle()
    assert (index.count(SPACE), await lines(again)) == (100, 0)
    assert await found(again, "parrot") == ["a parrot"]
    await again.close()


_BUILDER = """
import asyncio, sys
from pathlib import Path
from aios_kernel.memory import ChromaIndex, HashEmbedder, MemoryManager, indexer
from aios_kernel.syscalls import MemoryAdd

indexer._PORTION = 10

async def main():
    home = Path(sys.argv[1])
    make = lambda model: ChromaIndex(home / "chroma", model)
    memory = MemoryManager(home, HashEmbedder(), make, index_from=20, max_vectors=30)
    for n in range(60):
        await memory.add("u", "agent/alice", "alice", MemoryAdd(text=f"fact{n} item{n}", id=f"n{n}"))
        print(n, flush=True)
    await memory.delete("u", "agent/alice", "n5")
    await memory.settle()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "point", ["memory.dropped", "memory.queued", "memory.before_index", "memory.indexed", "memory.crossed_out"]
)
async def test_kill_9_while_it_is_built_loses_nothing(tmp_path: Path, point: str) -> None:
    plan = tmp_path / "plan.json"
    skip = 0 if point in ("memory.dropped", "memory.queued") else 2
    plan.write_text(json.dumps({point: {"action": "kill", "skip": skip}}))
    command = [sys.executable, "-c", _BUILDER, str(tmp_path)]
    environment = os.environ | {ENVIRONMENT: str(plan)}
    done = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = {int(number) for number in done.stdout.split()}
    memory = large(tmp_path)
    rows = {note.id for note in (await memory.search("u", NS, MemorySearch(k=999))).notes}
    assert rows >= {f"n{number}" for number in kept - {5}}
    await memory._indexer.prepare(SPACE)
    assert memory._indexer._index is not None
    assert memory._indexer._index.count(SPACE) == len(rows)
    assert await lines(memory) == 0
    for number in sorted(kept - {5})[::7]:
        assert await found(memory, f"fact{number} item{number}") == [f"fact{number} item{number}"]
    await memory.close()


class _Other:
    """Another model."""

    name = "other"

    def embed(self, texts: list[str]) -> Vectors:
        return HashEmbedder().embed([f"{text} other" for text in texts])

    def count_tokens(self, texts: list[str]) -> int:
        return len(texts)


async def test_a_note_that_comes_back_with_the_vector_of_another_model_is_embedded_anew(tmp_path: Path) -> None:
    first = MemoryManager(tmp_path, _Other(), lambda model: ExactIndex())
    await add(first, 3)
    await first.delete("u", NS, "n1", by="eve")
    await first.close()
    second = MemoryManager(tmp_path, HashEmbedder(), lambda model: pytest.fail("the index was opened"))
    await second.settle()
    assert await second.roll_back("u", NS, "eve", time.time() - 60) == 1
    await second.settle()
    assert (await second.progress()).left == 0
    models = await second._db.read(lambda db: [row[0] for row in db.execute("SELECT model FROM notes")])
    assert models == [HashEmbedder.name] * 3
    assert await found(second, "fact1 item1") == ["fact1 item1"]
    await second.close()
