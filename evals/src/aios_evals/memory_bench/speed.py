"""Acknowledged single adds beside chromadb's own, and the latency of a search. Vectors are given, not made."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from aios_kernel.memory import ChromaIndex, MemoryManager
from aios_kernel.syscalls import MemoryAdd, MemorySearch

_DIMENSIONS = 384
_WORDS = 20_000


@final
class GivenVectors:
    """An `Embedder` that costs nothing: row `n` of a table for the text that begins with `n`."""

    name = "given"

    def __init__(self) -> None:
        vectors = np.random.default_rng(0).standard_normal((4096, _DIMENSIONS), np.float32)
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """See `Embedder.embed`."""
        return self.vectors[[int(text.partition(" ")[0]) % len(self.vectors) for text in texts]]

    def count_tokens(self, texts: Sequence[str]) -> int:
        """See `Embedder.count_tokens`."""
        return sum(len(text.split()) for text in texts)


def measure(notes: int, spaces: int, searches: int, chroma_adds: int, writers: int = 64) -> dict[str, Any]:
    """One row: `notes` over `spaces` namespaces, each of the `writers` waiting for one add before the next.

    Chromadb's own adds are one after the other: its client is not made for several at once.
    """
    embedder = GivenVectors()
    with tempfile.TemporaryDirectory(prefix=".aios-memory-", dir=Path.cwd()) as folder:
        chroma_per_s = _chroma(Path(folder) / "own", embedder, chroma_adds)
        adds_per_s, latencies = asyncio.run(_ours(Path(folder), embedder, notes, spaces, searches, writers))
    p50, p99 = np.percentile(latencies, [50, 99])
    return {
        "case": f"{spaces}_spaces_{writers}_writers",
        "notes": notes,
        "adds_per_s": adds_per_s,
        "chroma_adds_per_s": chroma_per_s,
        "p50_ms": float(p50) * 1e3,
        "p99_ms": float(p99) * 1e3,
    }


def _texts(count: int) -> list[str]:
    """Texts of 15 words with frequencies as in natural language (Zipf), numbered."""
    ranks = np.random.default_rng(1).zipf(1.3, (count, 15)) % _WORDS
    return [f"{number} " + " ".join(f"w{rank}" for rank in row) for number, row in enumerate(ranks)]


def _chroma(path: Path, embedder: GivenVectors, adds: int) -> float:
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(path, settings=Settings(anonymized_telemetry=False))
    collection = client.create_collection("own", embedding_function=None)
    texts = _texts(adds)
    began = time.perf_counter()
    for number, text in enumerate(texts):
        collection.add(ids=[str(number)], embeddings=embedder.embed([text]), documents=[text])
    return adds / (time.perf_counter() - began)


async def _ours(
    home: Path, embedder: GivenVectors, notes: int, spaces: int, searches: int, writers: int
) -> tuple[float, list[float]]:
    memory = MemoryManager(home, embedder, lambda model: ChromaIndex(home / "chroma", model))
    texts = _texts(notes)

    async def write(first: int) -> None:
        for number in range(first, notes, writers):
            await memory.add("bench", f"agent/a{number % spaces}", "bench", MemoryAdd(texts[number]))

    began = time.perf_counter()
    await asyncio.gather(*(write(first) for first in range(writers)))
    adds_per_s = notes / (time.perf_counter() - began)
    asked = list(range(min(spaces, searches)))
    for space in asked:  # the first search of a space reads its words; it is no part of the figure
        await memory.search("bench", f"agent/a{space}", MemorySearch("0 w1"))
    latencies: list[float] = []
    for number in range(searches):
        query = " ".join(texts[number * 7 % notes].split()[:8])
        began = time.perf_counter()
        await memory.search("bench", f"agent/a{asked[number % len(asked)]}", MemorySearch(query))
        latencies.append(time.perf_counter() - began)
    await memory.close()
    return adds_per_s, latencies
