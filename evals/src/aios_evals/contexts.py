"""`aios bench contexts`: what forking, swapping and storing a context costs, beside copying its bytes and prefilling.

On the 34 M replay model in float32, one thread. Every operation is timed from its call until it is complete;
`thread_us` is how long the engine's thread was kept by it. Copying twice is the same bytes from one memory to another
and back. The disk's bandwidth is a plain write and sync, and a plain read past the page cache, of the same bytes in the
same run.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aios_evals.replay_model import random_model

LENGTHS = (256, 1024, 4096)
_SPARE = 2048
"""Tokens of the pool beyond the context, so that a restored one finds new blocks."""
_MEMORY_BYTES = 256 << 20
"""Memory that the yardstick of copying moves through: more than the processor's caches."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds: until complete, and of the calling thread. Medians of several runs."""

    total_s: float
    thread_s: float


@dataclass(frozen=True, slots=True)
class Yardsticks:
    """What the same bytes cost otherwise, in seconds."""

    copy_twice_s: float
    write_s: float
    read_s: float
    prefill_s: float


def run(lengths: Sequence[int] = LENGTHS, repeats: int = 7, model: Any = None) -> list[dict[str, Any]]:
    """One row an operation and length, on the replay model unless another is given."""
    import torch

    from aios_kernel.engine.torch import TorchEngine

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix=".aios-contexts-", dir=Path.cwd()) as folder:
        engine = TorchEngine(random_model() if model is None else model, kv_tokens=2 * max(lengths) + _SPARE)
        for length in lengths:
            rows += _measure(engine, length, repeats, Path(folder))
        engine.close()
    return rows


def _measure(engine: Any, length: int, repeats: int, folder: Path) -> list[dict[str, Any]]:
    context, prefill_s = _prefilled(engine, length)
    context = _touch_pool(engine, context)
    nbytes, timed = _operations(engine, context, repeats, folder)
    sticks = Yardsticks(_copy_twice(nbytes, repeats), *_disk(nbytes, repeats, folder / "plain"), prefill_s)
    swap_s = timed["snapshot"].total_s + timed["restore"].total_s
    return [_row(name, length, nbytes, result, sticks, swap_s) for name, result in timed.items()]


def _row(name: str, length: int, nbytes: int, timed: Timed, sticks: Yardsticks, swap_s: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "operation": name,
        "tokens": length,
        "bytes": nbytes,
        "total_us": timed.total_s * 1e6,
        "thread_us": timed.thread_s * 1e6,
        "prefill_ratio": sticks.prefill_s / timed.total_s,
        "swap_over_copy_twice": None,
        "mb_per_s": None,
        "disk_mb_per_s": None,
        "disk_ratio": None,
    }
    if name in {"snapshot", "restore"}:
        row["swap_over_copy_twice"] = swap_s / sticks.copy_twice_s
    elif name in {"save", "load"}:
        plain_s = sticks.write_s if name == "save" else sticks.read_s
        row |= {"mb_per_s": nbytes / timed.total_s / 1e6, "disk_mb_per_s": nbytes / plain_s / 1e6}
        row["disk_ratio"] = plain_s / timed.total_s
    return row


def _prefilled(engine: Any, length: int) -> tuple[Any, float]:
    """A context with so many computed tokens, and how long they took, best of two."""
    from aios_kernel.engine.protocol import SamplingParams

    best, context = float("inf"), None
    for seed in range(2):
        if context is not None:
            engine.release(context)
        tokens = np.random.default_rng([seed, length]).integers(0, engine.vocab, length).tolist()
        context = engine.open(tokens, sampling=SamplingParams())
        began = time.perf_counter()
        while context.computed < length:
            engine.step([(context, 512)])
        best = min(best, time.perf_counter() - began)
    return context, best


def _touch_pool(engine: Any, context: Any) -> Any:
    """Move a context round the pool until every block has had its first touch, which the system makes slow."""
    for _ in range(2 * engine.capabilities.kv_tokens // max(1, context.computed)):
        snapshot = engine.snapshot(context)
        snapshot.wait()
        snapshot.blocks = [(block, -1) for block, _ in snapshot.blocks]
        context = engine.restore(snapshot)
        _arrive(context)
    return context


def _operations(engine: Any, context: Any, repeats: int, folder: Path) -> tuple[int, dict[str, Timed]]:
    path = folder / "context.safetensors"
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ("fork", "snapshot", "restore", "save", "load")}
    nbytes = 0
    for _ in range(repeats):
        for _ in range(9):
            twin, spent = _spent(lambda held=context: engine.fork(held))
            taken["fork"].append(spent)
            engine.release(twin)
        snapshot, spent = _spent(lambda held=context: engine.snapshot(held), lambda made: made.wait())
        taken["snapshot"].append(spent)
        nbytes = snapshot.nbytes
        _, spent = _spent(lambda made=snapshot: made.save(path))
        taken["save"].append((spent[0], 0.0))  # on a thread of its own
        _drop_pages(path)
        loaded, spent = _spent(lambda: engine.load_snapshot(path))
        taken["load"].append((spent[0], 0.0))
        loaded.blocks = [(block, -1) for block, _ in loaded.blocks]  # found nowhere in the pool: all is copied
        context, spent = _spent(lambda made=loaded: engine.restore(made), _arrive)
        taken["restore"].append(spent)
    engine.release(context)
    return nbytes, {name: _median(pairs) for name, pairs in taken.items()}


def _arrive(context: Any) -> None:
    if context.arrival is not None:
        context.arrival.result()


def _spent(call: Callable[[], Any], complete: Callable[[Any], object] | None = None) -> tuple[Any, tuple[float, float]]:
    began = time.perf_counter()
    made = call()
    returned = time.perf_counter()
    if complete is not None:
        complete(made)
    return made, (time.perf_counter() - began, returned - began)


def _median(pairs: Sequence[tuple[float, float]]) -> Timed:
    return Timed(*(statistics.median(column) for column in zip(*pairs, strict=True)))


def _copy_twice(nbytes: int, repeats: int) -> float:
    """From a large memory to another and back, each time at another place, as cold as the operations find theirs."""
    pieces = max(4, _MEMORY_BYTES // nbytes)
    source, target = np.ones((pieces, nbytes), dtype=np.uint8), np.ones((pieces, nbytes), dtype=np.uint8)

    def copy(piece: int) -> None:
        np.copyto(target[piece], source[piece])
        np.copyto(source[-1 - piece], target[piece])

    return _median([_spent(lambda piece=number % pieces: copy(piece))[1] for number in range(repeats)]).total_s


def _disk(nbytes: int, repeats: int, path: Path) -> tuple[float, float]:
    data = np.random.default_rng(0).integers(0, 256, nbytes, dtype=np.uint8)

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            raw: Any = data
            view = memoryview(raw)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())

    writes, reads = [], []
    for _ in range(repeats):
        writes.append(_spent(write)[1])
        _drop_pages(path)
        reads.append(_spent(path.read_bytes)[1])
    return _median(writes).total_s, _median(reads).total_s


def _drop_pages(path: Path) -> None:
    """Forget a synced file's pages, so that it is read from the disk."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
