"""What the device can do at all: products, memory, and the link to the host, measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from aios_evals.schedule.cost import Gpu


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates per second. `memory` counts bytes read and written."""

    flops: float
    memory: float
    to_host: float
    to_device: float

    def gpu(self) -> Gpu:
        """As the lower bounds of `schedule.cost` want it."""
        return Gpu("measured", self.flops, self.memory, min(self.to_host, self.to_device))

    def row(self) -> dict[str, Any]:
        """For the table."""
        return {
            "matmul_tflop_per_s": self.flops / 1e12,
            "memory_gb_per_s": self.memory / 1e9,
            "to_host_gb_per_s": self.to_host / 1e9,
            "to_device_gb_per_s": self.to_device / 1e9,
        }


def measure(device: torch.device, dtype: torch.dtype, *, tiny: bool) -> Ceilings:
    """The best of several tries of each: products of square matrices, a long copy, and copies from pinned memory."""
    side, nbytes, moved = (512, 1 << 24, 1 << 22) if tiny else (8192, 1 << 32, 1 << 29)
    factors = torch.randn(2, side, side, device=device, dtype=dtype)
    flops = 2 * side**3 / best_s(lambda: torch.mm(factors[0], factors[1]), device, tries=3 if tiny else 20)
    source, target = (torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(2))
    source.zero_()
    memory = 2 * nbytes / best_s(lambda: target.copy_(source), device, tries=3 if tiny else 20)
    host = torch.empty(moved, dtype=torch.uint8, pin_memory=device.type == "cuda")
    host.zero_()
    near = source[:moved]
    to_host = moved / best_s(lambda: host.copy_(near, non_blocking=True), device)
    to_device = moved / best_s(lambda: near.copy_(host, non_blocking=True), device)
    return Ceilings(flops, memory, to_host, to_device)


def best_s(work: Callable[[], Any], device: torch.device, tries: int = 5) -> float:
    """Seconds of the fastest of several tries, behind one that does not count."""
    work()
    times: list[float] = []
    for _ in range(tries):
        settle(device)
        began = time.perf_counter()
        work()
        settle(device)
        times.append(time.perf_counter() - began)
    return min(times)


def settle(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
