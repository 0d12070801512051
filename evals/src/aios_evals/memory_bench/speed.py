"""Acknowledged single adds beside chromadb's own, searches of many notes, reopening. Vectors are given, not made."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from aios_kernel.memory import ChromaIndex, MemoryManager
from aios_kernel.syscalls import MemoryAdd, MemorySearch

_DIMENSIONS: Final = 384
_WORDS: Final = 20_000
_TOPICS: Final = 2_000
_WRITERS: Final = 64


@final
class GivenVectors:
    """An `Embedder` that costs next to nothing: the vector of a text is a topic's, moved a little, by its first word.

    As texts do, the notes lie in clusters: two of a topic have a cosine of about 0.6, others one near 0.
    """

    name = "given"

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._topics = rng.standard_normal((_TOPICS, _DIMENSIONS), np.float32)
        self._own = 0.8 * rng.standard_normal((1 << 16, _DIMENSIONS), np.float32)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """See `Embedder.embed`."""
        numbers = np.array([int(text.partition(" ")[0]) for text in texts])
        mixed = (numbers * 2_654_435_761) % (1 << 32)  # Knuth's multiplicative hash: any two notes differ
        made = self._topics[mixed % _TOPICS] + self._own[mixed >> 16]
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """See `Embedder.count_tokens`."""
        return sum(len(text.split()) for text in texts)


def adds(notes: int, chroma_notes: int, writers: int) -> dict[str, Any]:
    """One row: acknowledged adds of one note each, by so many who wait for each before the next, and chromadb's own.

    Chromadb's are one after the other: its client is not made for several at once.
    """
    embedder = GivenVectors()
    with _folder() as folder:
        chroma_per_s = _chroma(Path(folder) / "own", embedder, chroma_notes)
        home = Path(folder) / "ours"
        home.mkdir()
        ours_per_s = asyncio.run(_only_add(home, embedder, notes, writers))
    return {
        "case": f"add_{writers}_writers" if writers > 1 else "add_1_writer",
        "notes": notes,
        "adds_per_s": ours_per_s,
        "chroma_adds_per_s": chroma_per_s,
    }


def search(notes: int, spaces: int, searches: int) -> list[dict[str, Any]]:
    """Two rows: searches of `notes` in `spaces` namespaces, and reopening them: from nothing to the first answer.

    Searches come one after the other while nothing else runs: the index has caught up. Each namespace is asked at least
    once before. `p50_ms` and `p99_ms` are of the whole call, its `embed` included (a look-up in a table here).
    """
    embedder = GivenVectors()
    with _folder() as folder:
        added, latencies = asyncio.run(_fill_and_search(Path(folder), embedder, notes, spaces, searches))
        reopen_s = [asyncio.run(_reopened(Path(folder), embedder)) for _ in range(3)]
    p50, p99 = np.percentile(latencies, [50, 99])
    case = f"{spaces}_namespaces" if spaces > 1 else "1_namespace"
    return [
        {
            "case": f"search_{case}", "notes": notes, "adds_per_s": added, "p50_ms": float(p50) * 1e3,
            "p99_ms": float(p99) * 1e3, "searches": searches,
        },
        {"case": f"reopen_{case}", "notes": notes, "reopen_s": float(np.median(reopen_s))},
    ]  # fmt: skip


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix=".aios-memory-", dir=Path.cwd())  # a disk, where /tmp may be none


def _text(number: int, rng: np.random.Generator) -> str:
    """A text of 15 words with frequencies as in natural language (Zipf), numbered."""
    return f"{number} " + " ".join(f"w{rank}" for rank in rng.zipf(1.3, 15) % _WORDS)


def _chroma(path: Path, embedder: GivenVectors, notes: int) -> float:
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(path, settings=Settings(anonymized_telemetry=False))
    collection = client.create_collection("own", embedding_function=None)
    rng = np.random.default_rng(1)
    texts = [_text(number, rng) for number in range(notes)]
    began = time.perf_counter()
    for number, text in enumerate(texts):
        collection.add(ids=[str(number)], embeddings=embedder.embed([text]), documents=[text])
    return notes / (time.perf_counter() - began)


def _open(home: Path, embedder: GivenVectors) -> MemoryManager:
    return MemoryManager(home, embedder, lambda model: ChromaIndex(home / "chroma", model))


async def _only_add(home: Path, embedder: GivenVectors, notes: int, writers: int) -> float:
    memory = _open(home, embedder)
    per_s = await _add(memory, notes, 1, writers)
    await memory.close()
    return per_s


async def _add(memory: MemoryManager, notes: int, spaces: int, writers: int) -> float:
    rng = np.random.default_rng(1)
    texts = [_text(number, rng) for number in range(notes)]

    async def write(first: int) -> None:
        for number in range(first, notes, writers):
            await memory.add("bench", f"agent/a{number % spaces}", "bench", MemoryAdd(texts[number]))

    began = time.perf_counter()
    await asyncio.gather(*(write(first) for first in range(writers)))
    return notes / (time.perf_counter() - began)


async def _fill_and_search(
    home: Path, embedder: GivenVectors, notes: int, spaces: int, searches: int
) -> tuple[float, list[float]]:
    memory = _open(home, embedder)
    per_s = await _add(memory, notes, spaces, _WRITERS)
    await memory.settle()
    rng = np.random.default_rng(2)
    asked = [(int(rng.integers(spaces)), _text(int(rng.integers(notes)), rng)) for _ in range(searches)]
    for space in range(spaces):
        await memory.search("bench", f"agent/a{space}", MemorySearch("0 w1"))
    latencies: list[float] = []
    for space, query in asked:
        began = time.perf_counter()
        await memory.search("bench", f"agent/a{space}", MemorySearch(query))
        latencies.append(time.perf_counter() - began)
    await memory.close()
    return per_s, latencies


async def _reopened(home: Path, embedder: GivenVectors) -> float:
    began = time.perf_counter()
    memory = _open(home, embedder)
    notes = (await memory.search("bench", "agent/a0", MemorySearch("0 w1"))).notes
    took = time.perf_counter() - began
    assert notes, "what was added must be found"
    await memory.close()
    return took
