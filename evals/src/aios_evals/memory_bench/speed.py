"""Acknowledged single adds beside chromadb's own, searches of many notes, reopening. Vectors are given, not made."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, final

import numpy as np
import numpy.typing as npt

from aios_kernel.memory import ChromaIndex, MemoryManager
from aios_kernel.syscalls import MemoryAdd, MemorySearch

if TYPE_CHECKING:
    from chromadb.api.models.Collection import Collection

_DIMENSIONS: Final = 384
_WORDS: Final = 20_000
_TOPICS: Final = 2_000
_FILLERS: Final = 512
_ROUNDS: Final = 5
_PORTION: Final = 10_000


_Some = TypeVar("_Some", Sequence[str], npt.NDArray[np.float32])


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


class _Took(NamedTuple):
    """Seconds of one thing by the clock, and of this process's CPUs."""

    wall_s: float
    cpu_s: float


def adds(notes: int, chroma_notes: int, writers: int) -> dict[str, Any]:
    """One row: acknowledged adds of one note each, by so many who wait for each before the next, and chromadb's own.

    The two take turns, so that both meet the machine and its disk in every mood. All vectors are made before.
    Chromadb's adds are one after the other: its client is not made for several at once. `sync_us` is what the disk
    itself takes for 16 KiB, the least that an acknowledged add can take; `p50_ms` and `p99_ms` are of one add of ours.
    """
    with _folder() as folder:
        row = asyncio.run(_adds(Path(folder), notes, chroma_notes, writers))
    return {"case": f"add_{writers}_writers" if writers > 1 else "add_1_writer", "notes": notes, **row}


async def _adds(folder: Path, notes: int, chroma_notes: int, writers: int) -> dict[str, Any]:
    embedder, rng = GivenVectors(), np.random.default_rng(1)
    texts = [_text(number, rng) for number in range(notes)]
    vectors = embedder.embed(texts[:chroma_notes])
    memory, collection = _open(folder, embedder), _chroma(folder / "own")
    for start in range(0, notes, 1_000):
        await memory.embed_texts(texts[start : start + 1_000])  # kept by their texts' hashes
    took: list[float] = []
    ours_s = chroma_s = 0.0
    for number in range(_ROUNDS):
        begun = time.perf_counter()
        await _add(memory, _share(texts, number), 1, writers, took)
        between = time.perf_counter()
        _add_to_chroma(collection, _share(texts[:chroma_notes], number), _share(vectors, number))
        ours_s, chroma_s = ours_s + between - begun, chroma_s + time.perf_counter() - between
    await memory.close()
    return {
        "adds_per_s": notes / ours_s,
        "chroma_adds_per_s": chroma_notes / chroma_s,
        **_percentiles(np.array(took)),
        "sync_us": _sync_us(folder),
    }


def search(notes: int, spaces: int, searches: int) -> list[dict[str, Any]]:
    """Two rows: searches of `notes` in `spaces` namespaces, and reopening them: from nothing to the first answer.

    Searches come one after the other while nothing else runs: the index has caught up, `settle_s` after the last add.
    Each namespace is asked at least once before. `p50_ms` and `p99_ms` are of the whole call, its `embed` included (a
    look-up in a table here), by the clock; `cpu_p50_ms` and `cpu_p99_ms` by the CPU time of the process, which others
    on the machine do not lengthen. `rss_mib` is what the process has at the end.
    """
    embedder = GivenVectors()
    with _folder() as folder:
        row = asyncio.run(_fill_and_search(Path(folder), embedder, notes, spaces, searches))
        reopened = [asyncio.run(_reopened(Path(folder), embedder)) for _ in range(3)]
    case = f"{spaces}_namespaces" if spaces > 1 else "1_namespace"
    wall_s, cpu_s = np.median(np.array(reopened), axis=0).tolist()
    return [
        {"case": f"search_{case}", "notes": notes, **row, "searches": searches},
        {"case": f"reopen_{case}", "notes": notes, "reopen_s": wall_s, "cpu_s": cpu_s},
    ]


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix=".aios-memory-", dir=Path.cwd())  # a disk, where /tmp may be none


def _text(number: int, rng: np.random.Generator) -> str:
    """A text of 15 words with frequencies as in natural language (Zipf), numbered."""
    return f"{number} " + " ".join(f"w{rank}" for rank in rng.zipf(1.3, 15) % _WORDS)


def _share(texts: _Some, number: int) -> _Some:
    """What one round of `_ROUNDS` adds."""
    return texts[len(texts) * number // _ROUNDS : len(texts) * (number + 1) // _ROUNDS]


def _percentiles(seconds: npt.NDArray[np.float64], prefix: str = "") -> dict[str, float]:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return {f"{prefix}p50_ms": float(p50), f"{prefix}p99_ms": float(p99)}


def _sync_us(folder: Path) -> float:
    """How long the disk takes to make 16 KiB of a file durable that are written again; the median."""
    piece, took = os.urandom(16 << 10), list[float]()
    with (folder / "sync").open("wb", buffering=0) as file:
        file.write(bytes(64 * len(piece)))
        os.fsync(file.fileno())
        for number in range(256):
            began = time.perf_counter()
            os.pwrite(file.fileno(), piece, number % 64 * len(piece))
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return float(np.median(took)) * 1e6


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _chroma(path: Path) -> Collection:
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(path, settings=Settings(anonymized_telemetry=False))
    return client.create_collection("own", embedding_function=None)


def _add_to_chroma(collection: Collection, texts: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
    for text, vector in zip(texts, vectors, strict=True):
        collection.add(ids=[text.partition(" ")[0]], embeddings=[vector], documents=[text])


def _open(home: Path, embedder: GivenVectors) -> MemoryManager:
    return MemoryManager(home, embedder, lambda model: ChromaIndex(home / "chroma", model))


async def _add(
    memory: MemoryManager, texts: Sequence[str], spaces: int, writers: int, took: list[float] | None = None
) -> None:
    """Add texts, each to the namespace that its number tells; `took` gets the seconds of each."""

    async def write(waiting: Iterator[str]) -> None:
        for text in waiting:
            space = int(text.partition(" ")[0]) % spaces
            began = time.perf_counter()
            await memory.add("bench", f"agent/a{space}", "bench", MemoryAdd(text))
            if took is not None:
                took.append(time.perf_counter() - began)

    shared = iter(texts)
    await asyncio.gather(*(write(shared) for _ in range(writers)))


async def _fill_and_search(
    home: Path, embedder: GivenVectors, notes: int, spaces: int, searches: int
) -> dict[str, float]:
    memory = _open(home, embedder)
    filled_s, settle_s = await _fill(memory, notes, spaces)
    rng = np.random.default_rng(2)
    asked = [(int(rng.integers(spaces)), _text(int(rng.integers(notes)), rng)) for _ in range(searches)]
    for space in range(spaces):
        await memory.search("bench", f"agent/a{space}", MemorySearch("0 w1"))
    took = np.array([await _timed(memory, space, query) for space, query in asked])
    rss_mib = _rss_mib()
    await memory.close()
    return {
        "adds_per_s": notes / filled_s,
        "settle_s": settle_s,
        **_percentiles(took[:, 0]),
        **_percentiles(took[:, 1], "cpu_"),
        "rss_mib": rss_mib,
    }


async def _fill(memory: MemoryManager, notes: int, spaces: int) -> tuple[float, float]:
    """Add notes by many writers at once; gives the seconds of that, and until the index has followed."""
    rng = np.random.default_rng(1)
    filled_s = 0.0
    for start in range(0, notes, _PORTION):
        texts = [_text(number, rng) for number in range(start, min(notes, start + _PORTION))]
        began = time.perf_counter()
        await _add(memory, texts, spaces, _FILLERS)
        filled_s += time.perf_counter() - began
    began = time.perf_counter()
    await memory.settle()
    return filled_s, time.perf_counter() - began


async def _timed(memory: MemoryManager, space: int, query: str) -> _Took:
    began, used = time.perf_counter(), time.process_time()
    await memory.search("bench", f"agent/a{space}", MemorySearch(query))
    return _Took(time.perf_counter() - began, time.process_time() - used)


async def _reopened(home: Path, embedder: GivenVectors) -> _Took:
    began, used = time.perf_counter(), time.process_time()
    memory = _open(home, embedder)
    notes = (await memory.search("bench", "agent/a0", MemorySearch("0 w1"))).notes
    took = _Took(time.perf_counter() - began, time.process_time() - used)
    assert notes, "what was added must be found"
    await memory.close()
    return took
