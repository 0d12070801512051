"""What a step costs on a named GPU with a named model, and the least that a workload can take.

A step reads the weights once, or is bound by their arithmetic; attention comes on top: arithmetic for prefill chunks,
reading KV for decoding. Swaps go over the host link beside the step, one direction each. The formulas are those of the
roofline: FLOPs = 2 P n + 4 L h d (n c + n^2/2), KV bytes = 2 L h_kv d per token and element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aios_evals.schedule.workload import Program


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device: peaks from its data sheet, and the shares of them that good kernels reach."""

    name: str
    flops: float
    """Dense 16-bit, per second."""
    bytes_per_s: float
    link_bytes_per_s: float
    """Between device and host, each way while both are busy."""
    mfu: float = 0.5
    attention_mfu: float = 0.5
    mbu: float = 0.75
    step_overhead_s: float = 1e-3
    weight_bytes_per_s: float = 0.0
    """Reading weights, where it differs from `mbu` of the bandwidth."""
    sequence_overhead_s: float = 0.0
    """Of each sequence in a step, whatever is computed for it."""


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder's shape."""

    name: str
    params: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    element_bytes: int = 2

    @property
    def kv_bytes(self) -> int:
        """Of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.element_bytes

    @property
    def weight_bytes(self) -> float:
        """Of all weights."""
        return self.params * self.element_bytes


GPUS = {
    "h200": Gpu("h200", 989e12, 4.8e12, 41.5e9),
    "h100": Gpu("h100", 989e12, 3.35e12, 41.5e9),
    "a100": Gpu("a100", 312e12, 2.0e12, 20.0e9),
}
MODELS = {
    "llama-3.1-8b": Model("llama-3.1-8b", 8.03e9, 32, 32, 8, 128),
    "qwen2.5-7b": Model("qwen2.5-7b", 7.62e9, 28, 28, 4, 128),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a GPU with a model."""

    gpu: Gpu
    model: Model

    def linear_s(self, tokens: float) -> float:
        """The part of a step that all its tokens share: reading the weights once, or their arithmetic."""
        arithmetic = 2 * self.model.params * tokens / (self.gpu.flops * self.gpu.mfu)
        bandwidth = self.gpu.weight_bytes_per_s or self.gpu.bytes_per_s * self.gpu.mbu
        return max(arithmetic, self.model.weight_bytes / bandwidth)

    def prefill_attention_s(self, new: float, cached: float) -> float:
        """Attention of `new` tokens behind `cached` ones; the same for any cut of them into chunks."""
        flops = 4 * self.model.layers * self.model.heads * self.model.head_dim * new * (cached + new / 2)
        return flops / (self.gpu.flops * self.gpu.attention_mfu)

    def read_s(self, tokens: float) -> float:
        """Reading the KV of so many tokens."""
        return self.model.kv_bytes * tokens / (self.gpu.bytes_per_s * self.gpu.mbu)

    def steps_s(self, steps: int, chunks: Sequence[tuple[int, int]], decoding: int, context: int) -> float:
        """`steps` like steps, one after the other.

        Args:
            steps: how many.
            chunks: of each prefill, tokens a step and tokens computed before the first step.
            decoding: sequences that take one token a step.
            context: tokens that these attend to in the first step, all together; each grows by one a step.
        """
        shared = self.linear_s(decoding + sum(tokens for tokens, _ in chunks)) + self.gpu.step_overhead_s
        shared += self.gpu.sequence_overhead_s * (decoding + len(chunks))
        seconds = steps * shared + self.read_s(steps * context + decoding * steps * (steps - 1) / 2)
        for tokens, before in chunks:
            seconds += self.prefill_attention_s(steps * tokens, before)
        return seconds

    def prefill_s(self, new: int, cached: int) -> float:
        """Prefilling alone, in one step."""
        return self.linear_s(new) + self.prefill_attention_s(new, cached)

    def move_s(self, tokens: float) -> float:
        """Moving the KV of so many tokens over the host link."""
        return self.model.kv_bytes * tokens / self.gpu.link_bytes_per_s


@dataclass(frozen=True, slots=True)
class Bound:
    """Lower bounds in seconds at the data sheet's peaks, whatever the policy."""

    arithmetic_s: float
    memory_s: float
    critical_s: float
    """The longest program alone."""
    slots_s: float
    """All programs alone, after each other on each of the slots; 0 in an open loop."""

    @property
    def makespan_s(self) -> float:
        """Prefill and decode may overlap, so the largest, not the sum."""
        return max(self.arithmetic_s, self.memory_s, self.critical_s, self.slots_s)


def bound(cost: Cost, programs: Sequence[Program], slots: int | None, max_batch: int) -> Bound:
    """The least time for all programs with an infinite cache; `slots` run at once in a closed loop."""
    gpu, model = cost.gpu, cost.model
    calls = [call for top in programs for program in top.family() for call in program.calls]
    arithmetic = sum(flops(model, call.new, call.shared, call.output) for call in calls) / gpu.flops
    reads = sum(model.kv_bytes * (c.output * c.prompt + c.output**2 / 2) for c in calls)
    steps = sum(call.output for call in calls) / max_batch
    alone = [critical_s(cost, program) for program in programs]
    memory = (steps * model.weight_bytes + reads) / gpu.bytes_per_s
    return Bound(arithmetic, memory, max(alone), sum(alone) / slots if slots else 0.0)


def flops(model: Model, new: float, cached: float, output: float) -> float:
    """Of one call."""
    pairs = new * cached + new**2 / 2 + output * (cached + new) + output**2 / 2
    return 2 * model.params * (new + output) + 4 * model.layers * model.heads * model.head_dim * pairs


def critical_s(cost: Cost, program: Program) -> float:
    """One program alone on the device at its peaks, with everything cached that could be; children side by side."""
    gpu, model = cost.gpu, cost.model
    weights = model.weight_bytes / gpu.bytes_per_s
    total = 0.0
    for call in program.calls:
        prefill = max(flops(model, call.new, call.shared, 0) / gpu.flops, weights)
        read = model.kv_bytes * (call.output * call.prompt + call.output**2 / 2) / gpu.bytes_per_s
        pause = max([call.think_s, *(critical_s(cost, child) for child in call.children)])
        total += pause + prefill + (call.output - 1) * weights + read
    return total
