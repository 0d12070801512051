"""`aios bench roofline`: how long a step takes beside what this machine's memory and arithmetic allow at best.

The ceilings are measured in the same run: memory is read in one stream, and products are made of matrices that stay in
the cache. A step cannot be faster than reading its weights and its KV once, nor than its products and its attention;
the larger of the two is the bound (the roofline model of Williams et al., 2009).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios_evals.engine_bench.shapes import SHAPES, Shape, ensure

if TYPE_CHECKING:
    from torch import dtype as Kind

    from aios_kernel.engine.torch import TorchEngine

PROMPT, CHUNK = 96, 1024
_STREAM_BYTES, _TILE, _REPEATS, _STEPS = 1 << 29, 512, 8, 40


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What one setting reaches at best: bytes and floating point operations per second."""

    bytes_per_s: float
    flop_per_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """What one step has to do at least.

    Attributes:
        read: bytes of weights and of KV.
        flop: of products and of attention.
    """

    read: float
    flop: float

    def bound_s(self, ceilings: Ceilings) -> float:
        """Seconds that it takes at least."""
        return max(self.read / ceilings.bytes_per_s, self.flop / ceilings.flop_per_s)


def run(
    folder: Path,
    model: str = "34m",
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    threads: Sequence[int] = (1, 2),
    batches: Sequence[int] = (1, 8, 32, 128),
    *,
    compile: bool = True,
) -> list[dict[str, Any]]:
    """Rows `{work, batch, dtype, threads, read_mb, gflop, bound_ms, step_ms, share, gb_per_s, gflop_per_s}`.

    `share` is the bound's part of what the step took, `gb_per_s` and `gflop_per_s` are the ceilings.

    Args:
        folder: where the models are kept.
        model: of `SHAPES`.
        dtypes: of the weights.
        threads: of the engine.
        batches: contexts that decode together.
        compile: whether it runs compiled.
    """
    import torch

    before = torch.get_num_threads()
    try:
        return [
            row
            for dtype in dtypes
            for n in threads
            for row in _setting(folder, model, getattr(torch, dtype), n, batches, compile=compile)
        ]
    finally:
        torch.set_num_threads(before)


def _setting(
    folder: Path, model: str, kind: Kind, threads: int, batches: Sequence[int], *, compile: bool
) -> list[dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    from aios_kernel.engine.torch import TorchEngine

    torch.set_num_threads(threads)
    ceilings = measure_ceilings(kind)
    weights = AutoModelForCausalLM.from_pretrained(ensure(folder, model), dtype=kind, use_safetensors=True)
    engine = TorchEngine(weights, compile=compile)
    shape, size = SHAPES[model], kind.itemsize
    try:
        measured = [
            *(("decode", batch, decode_work(shape, batch, size), _decode_s(engine, batch)) for batch in batches),
            ("prefill", 1, prefill_work(shape, CHUNK, size), _prefill_s(engine)),
        ]
    finally:
        engine.close()
    told = {"dtype": str(kind).removeprefix("torch."), "threads": threads}
    return [_row(work, batch, told, least, seconds, ceilings) for work, batch, least, seconds in measured]


def _row(
    work: str, batch: int, told: dict[str, Any], least: Work, seconds: float, ceilings: Ceilings
) -> dict[str, Any]:
    bound = least.bound_s(ceilings)
    return {
        "work": work,
        "batch": batch,
        **told,
        "read_mb": round(least.read / 1e6, 1),
        "gflop": round(least.flop / 1e9, 2),
        "bound_ms": round(bound * 1e3, 3),
        "step_ms": round(seconds * 1e3, 3),
        "share": round(bound / seconds, 3),
        "gb_per_s": round(ceilings.bytes_per_s / 1e9, 1),
        "gflop_per_s": round(ceilings.flop_per_s / 1e9, 1),
    }


def measure_ceilings(kind: Kind) -> Ceilings:
    """Memory read in one stream, and the best of oneDNN's and our products of matrices that stay in the cache."""
    import torch
    from torch.nn import functional

    from aios_kernel.engine.torch.native import linear

    stream = torch.ones(_STREAM_BYTES // 4)
    weight, rows = torch.randn(_TILE, _TILE, dtype=kind), torch.randn(1, _TILE, _TILE, dtype=kind)
    products: list[Callable[[], Any]] = [lambda: functional.linear(rows, weight)]
    if linear.served(kind):
        packed = linear.packed(weight)
        products.append(lambda: linear.multiply(rows, packed, None, _TILE))
    seconds = min(_best_s(call, 20 * _REPEATS) for call in products)
    return Ceilings(_STREAM_BYTES / _best_s(stream.sum, _REPEATS), 2 * _TILE**3 / seconds)


def decode_work(shape: Shape, batch: int, size: int) -> Work:
    """Of one token for each of `batch` contexts of `PROMPT` tokens; `size` bytes a number."""
    weights, width = _weights(shape), shape.hidden_size // shape.num_attention_heads
    kv = 2 * shape.num_hidden_layers * shape.num_key_value_heads * width * batch * PROMPT
    attention = 4 * shape.num_hidden_layers * shape.hidden_size * batch * PROMPT
    return Work((weights + kv) * size, 2 * weights * batch + attention)


def prefill_work(shape: Shape, tokens: int, size: int) -> Work:
    """Of a prompt, of whose tokens only the last needs logits."""
    weights, head = _weights(shape), shape.vocab_size * shape.hidden_size
    attention = 2 * shape.num_hidden_layers * shape.hidden_size * tokens * tokens
    return Work(weights * size, 2 * (weights - head) * tokens + 2 * head + attention)


def _weights(shape: Shape) -> int:
    """Numbers in the products of a forward; the embedding is looked up, not read."""
    hidden = shape.hidden_size
    kv = hidden * shape.num_key_value_heads // shape.num_attention_heads
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * shape.intermediate_size
    return layer * shape.num_hidden_layers + shape.vocab_size * hidden


def _decode_s(engine: TorchEngine, batch: int) -> float:
    from aios_kernel.engine.protocol import SamplingParams

    contexts = [engine.open(_prompt(engine, PROMPT), sampling=SamplingParams()) for _ in range(batch)]
    while waiting := [context for context in contexts if context.pending > 1]:
        engine.step([(context, PROMPT) for context in waiting][:16])
    plan = [(context, 1) for context in contexts]
    seconds = _best_s(lambda: engine.step(plan), _STEPS)
    for context in contexts:
        engine.release(context)
    return seconds


def _prefill_s(engine: TorchEngine) -> float:
    from aios_kernel.engine.protocol import SamplingParams

    def prefill() -> None:
        context = engine.open(_prompt(engine, CHUNK), sampling=SamplingParams())
        engine.step([(context, CHUNK)])
        engine.release(context)

    return _best_s(prefill, _REPEATS)


def _prompt(engine: TorchEngine, tokens: int) -> list[int]:
    chooser = random.Random()  # never the same, or the prefix cache would have it
    return [chooser.randrange(engine.vocab) for _ in range(tokens)]


def _best_s(call: Callable[[], Any], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best
