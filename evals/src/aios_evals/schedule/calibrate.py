"""The cost model against this machine: our engine on the 34 M replay model, one thread, float32.

Six figures are fitted on steps of one kind (overhead of a step and of a sequence, weights, arithmetic of the linear
layers and of attention, bandwidth of reading KV). Then a mixed run of other lengths, batches and chunks is measured
and predicted: an independent check.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aios_evals.schedule.cost import Cost, Gpu, Model
from aios_kernel.engine.protocol import SamplingParams

Chunks = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Timed:
    """A step: its prefill chunks as (tokens, before), the contexts that decode, and its seconds."""

    chunks: Chunks
    contexts: Sequence[int]
    seconds: float


def run(repeats: int = 7) -> list[dict[str, Any]]:
    """One row: the fitted figures, and measured and predicted seconds of the mixed run."""
    import torch

    from aios_evals.replay_model import random_model
    from aios_kernel.engine.torch import TorchEngine

    torch.set_num_threads(1)
    model = random_model()
    shape = _shape(model.config)
    engine = TorchEngine(model, kv_tokens=1 << 15)
    try:
        cost = fit(shape, [_lone(engine, *case, repeats) for case in _CASES])
        steps = _mixed(engine)
    finally:
        engine.close()
    return [_row(cost, steps)]


_CASES = (
    # prefill chunk, tokens before it, sequences that decode, their context
    (64, 0, 0, 0), (256, 0, 0, 0), (512, 0, 0, 0), (256, 1024, 0, 0), (256, 2048, 0, 0),
    (0, 0, 1, 64), (0, 0, 1, 2048), (0, 0, 4, 512), (0, 0, 8, 64), (0, 0, 8, 1024), (0, 0, 16, 64),
    (128, 0, 2, 512), (128, 512, 4, 256), (64, 1024, 8, 512),
)  # fmt: skip
_FEW = 16
"""Tokens up to which a step is at first taken to be bound by reading the weights."""


def _shape(config: Any) -> Model:
    """Of a Llama-like model in float32; the embedding table is looked up, not multiplied."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    projections = hidden * head * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    params = layers * (projections + 3 * hidden * inner) + config.vocab_size * hidden
    return Model("replay", params, layers, config.num_attention_heads, config.num_key_value_heads, head, 4)


def fit(shape: Model, timed: Sequence[Timed]) -> Cost:
    """The figures that explain the timings best, by least squares of the relative error; none is negative.

    Which steps are bound by reading the weights and which by arithmetic is settled by turns with how fast both are.
    """
    unit = Cost(Gpu("unit", 1.0, 1.0, 1.0, mfu=1.0, attention_mfu=1.0, mbu=1.0, step_overhead_s=0.0), shape)
    seconds = np.array([each.seconds for each in timed])
    few, found = float(_FEW), [0.0] * 6
    for _ in range(10):
        found = _least(np.array([_features(unit, each, few) for each in timed]), seconds)
        before, few = few, found[2] / max(2 * shape.params * found[3], 1e-30)
        if few == before:
            break
    overhead, sequence, weights, linear, attention, read = found
    linear = max(linear, 1e-15)
    gpu = Gpu(
        "measured",
        flops=1 / linear,
        bytes_per_s=1 / max(read, 1e-15),
        link_bytes_per_s=1.0,
        mfu=1.0,
        mbu=1.0,
        step_overhead_s=overhead,
        attention_mfu=linear / max(attention, 1e-15),
        weight_bytes_per_s=shape.weight_bytes / max(weights, 1e-12),
        sequence_overhead_s=sequence,
    )
    return Cost(gpu, shape)


def _features(unit: Cost, each: Timed, few: float) -> list[float]:
    """What a step's time is a sum of; up to `few` tokens it reads the weights for longer than it multiplies."""
    tokens = len(each.contexts) + sum(tokens for tokens, _ in each.chunks)
    attention = sum(unit.prefill_attention_s(tokens, before) for tokens, before in each.chunks)
    bound = tokens <= few
    arithmetic = 0.0 if bound else 2 * unit.model.params * tokens
    sequences = len(each.contexts) + len(each.chunks)
    return [1.0, sequences, float(bound), arithmetic, attention, unit.read_s(sum(each.contexts))]


def _least(features: Any, seconds: Any) -> list[float]:
    """Non-negative least squares of relative errors: the column that comes out negative is left out."""
    columns = list(range(features.shape[1]))
    while True:
        scaled = features[:, columns] / seconds[:, None]
        scale = np.maximum(np.abs(scaled).max(axis=0), 1e-300)
        found = np.linalg.lstsq(scaled / scale, np.ones(len(seconds)), rcond=None)[0] / scale
        if (found >= 0).all():
            result = [0.0] * features.shape[1]
            for column, value in zip(columns, found, strict=True):
                result[column] = float(value)
            return result
        columns.pop(int(np.argmin(found)))


def _lone(engine: Any, chunk: int, before: int, decoding: int, context: int, repeats: int) -> Timed:
    """The median time of one kind of step."""
    seconds: list[float] = []
    for repeat in range(repeats):
        seed = [repeat, chunk, before, decoding, context]
        held = [_opened(engine, [*seed, n], context, context) for n in range(decoding)]
        plan = [(each, 1) for each in held]
        if chunk:
            held.append(_opened(engine, [*seed, decoding], before + chunk, before))
            plan.append((held[-1], chunk))
        began = time.perf_counter()
        engine.step(plan)
        seconds.append(time.perf_counter() - began)
        for each in held:
            engine.release(each)
    chunks = [(chunk, before)] if chunk else []
    return Timed(chunks, [context] * decoding, statistics.median(seconds))


def _opened(engine: Any, seed: Sequence[int], length: int, computed: int) -> Any:
    """A context with so many tokens computed; one that is computed to its end decodes next."""
    tokens = np.random.default_rng(seed).integers(0, engine.vocab, length).tolist()
    context = engine.open(tokens, sampling=SamplingParams())
    while context.computed < computed:
        engine.step([(context, min(512, computed - context.computed))])
    return context


def _mixed(engine: Any, calls: int = 24, batch: int = 8, budget: int = 192) -> list[Timed]:
    """Calls of random lengths, first come, first served, chunks beside decoding."""
    rng = np.random.default_rng(0)
    queue = [(int(rng.integers(50, 1500)), int(rng.integers(5, 60))) for _ in range(calls)]
    running: list[list[Any]] = []
    steps: list[Timed] = []
    while queue or running:
        while queue and len(running) < batch:
            length, output = queue.pop()
            running.append([_opened(engine, [7, len(queue)], length, 0), length, output])
        plan, chunks, contexts, left = [], [], [], budget
        for context, length, _ in running:
            tokens = min(length - context.computed, left) if context.computed < length else 1
            if tokens:
                plan.append((context, tokens))
                left -= tokens
                if context.computed < length:
                    chunks.append((tokens, context.computed))
                else:
                    contexts.append(context.computed)
        began = time.perf_counter()
        outputs = engine.step(plan)
        steps.append(Timed(chunks, contexts, time.perf_counter() - began))
        for output in outputs:
            entry = next(each for each in running if each[0] is output.context)
            entry[2] -= output.token is not None
            if entry[2] <= 0:
                engine.release(entry[0])
                running.remove(entry)
    return steps


def _row(cost: Cost, steps: Sequence[Timed]) -> dict[str, Any]:
    predicted = [cost.steps_s(1, each.chunks, len(each.contexts), sum(each.contexts)) for each in steps]
    measured = sum(each.seconds for each in steps)
    errors = [abs(guess / each.seconds - 1) for guess, each in zip(predicted, steps, strict=True)]
    return {
        "model": cost.model.name,
        "steps": len(steps),
        "measured_s": measured,
        "predicted_s": sum(predicted),
        "error": sum(predicted) / measured - 1,
        "median_step_error": statistics.median(errors),
        "overhead_us": cost.gpu.step_overhead_s * 1e6,
        "sequence_us": cost.gpu.sequence_overhead_s * 1e6,
        "linear_gflop_per_s": cost.gpu.flops * cost.gpu.mfu / 1e9,
        "attention_gflop_per_s": cost.gpu.flops * cost.gpu.attention_mfu / 1e9,
        "weights_gb_per_s": cost.gpu.weight_bytes_per_s / 1e9,
        "kv_gb_per_s": cost.gpu.bytes_per_s * cost.gpu.mbu / 1e9,
    }
