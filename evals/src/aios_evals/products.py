"""`aios bench products`: the linear layers of a model one after the other, by our products, oneDNN's and plain ones.

All layers of the 34 M model, so that weights come from memory as they do in a step, and nothing else of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, dtype

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
FULL_ROWS = (*ROWS, 1024, 2048)
_ROUNDS, _BUDGET_ROWS = 6, 400
"""Rounds of every row count, and rows in all for which more rounds are run."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Widths of the linear layers of a Llama: [outputs, inputs], in the order of a forward."""

    hidden: int = 512
    kv: int = 256
    feed_forward: int = 1536
    vocab: int = 8192
    count: int = 8

    def shapes(self) -> list[tuple[int, int]]:
        """All of them."""
        h, kv, ff = self.hidden, self.kv, self.feed_forward
        return [(h, h), (kv, h), (kv, h), (h, h), (ff, h), (ff, h), (h, ff)] * self.count + [(self.vocab, h)]


def run(rows: Sequence[int] = ROWS, layers: Layers | None = None) -> list[dict[str, Any]]:
    """Rows `{dtype, kernel, rows, time_ms, gflop_per_s, gb_per_s, ratio_to_onednn}`, on one thread, by CPU time.

    `gb_per_s` counts weights only. A kernel that this machine lacks has no rows.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return [
                row
                for kind in (torch.float32, torch.bfloat16)
                for row in _measure(kind, rows, (layers or Layers()).shapes())
            ]
    finally:
        torch.set_num_threads(threads)


def _measure(kind: dtype, rows: Sequence[int], shapes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    import torch

    weights = [torch.randn(shape).to(kind) for shape in shapes]
    kernels = _kernels(weights)
    size = sum(weight.numel() for weight in weights)
    found: list[dict[str, Any]] = []
    for n in rows:
        inputs = {shape[1]: torch.randn(1, n, shape[1]).to(kind) for shape in shapes}
        times = _times(kernels, inputs, max(_ROUNDS, _BUDGET_ROWS // n))
        found.extend(
            {
                "dtype": str(kind).removeprefix("torch."),
                "kernel": name,
                "rows": n,
                "time_ms": round(seconds * 1e3, 3),
                "gflop_per_s": round(2 * n * size / seconds / 1e9, 1),
                "gb_per_s": round(size * kind.itemsize / seconds / 1e9, 1),
                "ratio_to_onednn": round(times["onednn"] / seconds, 3) if "onednn" in times else None,
            }
            for name, seconds in times.items()
        )
    return found


def _kernels(weights: Sequence[Tensor]) -> dict[str, list[Callable[[dict[int, Tensor]], Tensor]]]:
    """What can multiply here: by name, a call for each weight that takes the inputs by their width."""
    import torch.nn.functional as F
    from torch import nn

    from aios_kernel.engine.torch.native import linear as products
    from aios_kernel.engine.torch.packed import PackedLinear, onednn_serves

    found: dict[str, list[Any]] = {"plain": [_plain(F.linear, weight) for weight in weights]}
    if onednn_serves(weights[0].dtype):
        found["onednn"] = [_module(PackedLinear(_layer(nn, weight), keep=False)) for weight in weights]
    if products.served(weights[0].dtype):
        found["ours"] = [_ours(products, weight) for weight in weights]
    return found


def _plain(linear: Any, weight: Tensor) -> Callable[[dict[int, Tensor]], Tensor]:
    return lambda inputs: linear(inputs[weight.shape[1]], weight)


def _module(layer: Any) -> Callable[[dict[int, Tensor]], Tensor]:
    return lambda inputs: layer(inputs[layer.in_features])


def _ours(products: Any, weight: Tensor) -> Callable[[dict[int, Tensor]], Tensor]:
    packed, (outputs, width) = products.packed(weight), weight.shape
    return lambda inputs: products.multiply(inputs[width], packed, None, outputs)


def _layer(nn: Any, weight: Tensor) -> Any:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.copy_(weight)
    return layer


def _times(
    kernels: dict[str, list[Callable[[dict[int, Tensor]], Tensor]]], inputs: dict[int, Tensor], rounds: int
) -> dict[str, float]:
    """CPU-seconds of each kernel's best round; they take turns."""
    best = dict.fromkeys(kernels, float("inf"))
    for _ in range(rounds + 1):
        for name, calls in kernels.items():
            began = time.process_time()
            for call in calls:
                call(inputs)
            best[name] = min(best[name], time.process_time() - began)
    return best
