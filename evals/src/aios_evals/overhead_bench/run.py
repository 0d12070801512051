"""The bench: a batch of answers on each road in turn, round after round; each is compared with its own round's engine.

`engine` drives the engine itself, with the prompts as tokens; `text` does the same from chats to text. `kernel` asks
the kernel's sessions: programs, policy, templates and text. `socket` is asked by clients in another process, which get
their answers whole; `stream` likewise, which are told every token. All run on one engine. CPU seconds are those of all
threads of the process that serves, the system's work for it included; the clients' process is not counted.
"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios_evals.overhead_bench.roads import EngineRoad, KernelRoad, Road, SocketRoad, TextRoad
from aios_evals.overhead_bench.work import NEW, questions, write_model
from aios_kernel.config import Config

if TYPE_CHECKING:
    from aios_kernel.server.inprocess import InProcessKernel

PATHS = ("engine", "text", "kernel", "socket", "stream")
DTYPES = ("float32", "bfloat16")
_ALONE = 8
"""Lone calls a round."""


@dataclass(slots=True)
class _Measured:
    """Of one path: tokens per CPU-second of each round, and seconds to the first token of a lone call."""

    rates: list[float] = field(default_factory=list[float])
    first_s: list[float] = field(default_factory=list[float])


def run(
    paths: Sequence[str] = PATHS,
    dtypes: Sequence[str] = DTYPES,
    batch: int = 32,
    rounds: int = 12,
    model: Any = None,
    *,
    compile: bool = True,
) -> list[dict[str, Any]]:
    """Rows `{path, dtype, batch, rounds, tokens_per_cpu_s, ratio, ratio_low, ratio_high, ttft_ms, ttft_later_ms}`.

    `ratio` is the median over the rounds of the path's rate over the engine's, with its 95 % interval (`interval`);
    `ttft_later_ms` is how much later than on the engine the first token of a call comes that is alone. Where `text` is
    among the paths, rows have `ratio_to_text` too: over the rate of that.

    Args:
        paths: of `PATHS`; the engine is always among them.
        dtypes: of `DTYPES`.
        batch: clients, each with one call open.
        rounds: to measure; one more warms up.
        model: another than the 34 M one, of its vocabulary.
        compile: whether it runs compiled.
    """
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)  # of this thread, which drives the engine; the kernel sets its own
    logging.disable_progress_bar()
    asked = [path for path in PATHS if path in paths or path == "engine"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="aios-overhead-") as folder:
        target = Path(folder) / "model"
        write_model(target, model)
        for dtype in dtypes:
            with _kernel(Path(folder) / dtype, target, dtype, batch, compile=compile) as kernel:
                rows += _rows(_measure(kernel, asked, batch, rounds), dtype, batch)
    return rows


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Order statistics between which the median lies with at least 95 % (sign test); all there is below six values."""
    ordered, n = sorted(values), len(values)
    outside, tail = 0, 0.0
    while (tail := tail + math.comb(n, outside) / 2**n) <= 0.025:
        outside += 1
    place = max(0, outside - 1)
    return ordered[place], ordered[n - 1 - place]


def _measure(kernel: InProcessKernel, paths: Sequence[str], batch: int, rounds: int) -> dict[str, _Measured]:
    assert kernel.kernel is not None
    codec, chooser = kernel.kernel.model.codec, random.Random(1)
    measured = {path: _Measured() for path in paths}
    with ExitStack() as stack:
        roads: dict[str, Road] = {path: _road(path, kernel, batch) for path in paths if path != "stream"}
        for road in roads.values():
            stack.enter_context(closing(road))
        if "stream" in paths:
            roads["stream"] = roads.get("socket") or stack.enter_context(closing(_road("socket", kernel, batch)))
        for turn in range(rounds + 1):
            for path in (*paths[turn % len(paths) :], *paths[: turn % len(paths)]):
                calls = roads[path].prepare(questions(codec, chooser, batch, stream=path == "stream"))
                rate = _rate(roads[path], calls, batch)
                alone = [roads[path].prepare(questions(codec, chooser, 1, new=1, stream=True)) for _ in range(_ALONE)]
                first_s = [roads[path].first_token_s(call) for call in alone]
                if turn:  # the first one only warms up
                    measured[path].rates.append(rate)
                    measured[path].first_s += first_s
    return measured


def _road(path: str, kernel: InProcessKernel, batch: int) -> Road:
    if path in ("engine", "text"):
        return EngineRoad(kernel) if path == "engine" else TextRoad(kernel)
    return KernelRoad(kernel, batch) if path == "kernel" else SocketRoad(kernel, batch)


def _rate(road: Road, calls: Any, batch: int) -> float:
    began = time.process_time()
    road.answer(calls)
    return batch * NEW / (time.process_time() - began)


def _rows(measured: Mapping[str, _Measured], dtype: str, batch: int) -> list[dict[str, Any]]:
    engine = measured["engine"]
    rows: list[dict[str, Any]] = []
    for path, each in measured.items():
        ratios = _ratios(each.rates, engine.rates)
        low, high = interval(ratios)
        first_ms, base_ms = (statistics.median(seconds) * 1e3 for seconds in (each.first_s, engine.first_s))
        text = measured.get("text")
        to_text = {} if text is None else {"ratio_to_text": statistics.median(_ratios(each.rates, text.rates))}
        rows.append(
            {
                "path": path,
                "dtype": dtype,
                "batch": batch,
                "rounds": len(ratios),
                "tokens_per_cpu_s": statistics.median(each.rates),
                "ratio": statistics.median(ratios),
                "ratio_low": low,
                "ratio_high": high,
                **to_text,
                "ttft_ms": first_ms,
                "ttft_later_ms": first_ms - base_ms,
            }
        )
    return rows


def _ratios(rates: Sequence[float], base: Sequence[float]) -> list[float]:
    return [rate / other for rate, other in zip(rates, base, strict=True)]


@contextmanager
def _kernel(home: Path, model: Path, dtype: str, batch: int, *, compile: bool) -> Generator[InProcessKernel]:
    from aios_kernel.server.inprocess import InProcessKernel

    config = Config(
        home=str(home), kernel="inprocess", model=str(model), device="cpu", dtype=dtype, threads=1, compile=compile,
        kv_tokens=batch * 1024, embedder="hash", vectors="exact",
    )  # fmt: skip
    running = InProcessKernel(config)
    try:
        yield running
    finally:
        running.stop()
