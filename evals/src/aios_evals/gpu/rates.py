"""Prefill beside the device's arithmetic, decode beside its memory."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator

from aios_evals.gpu.bench import GREEDY, Row, Subject, opened, prefill, released, tokens
from aios_evals.gpu.ceilings import settle
from aios_kernel.engine.protocol import Context
from aios_kernel.engine.torch import TorchEngine


def prefills(subject: Subject) -> Iterator[Row]:
    """A prompt at a time, the best of three, each new to the prefix cache."""
    engine, bench = subject.engine(), subject.bench
    facts, ceiling = subject.facts(), bench.limits().flops
    for length in bench.sizes.prompts:
        times = [_prefill_s(subject, engine, length, number) for number in range(4)]
        seconds = min(times[1:])
        flops = facts.prefill_flops(length)
        yield {
            "tokens": length,
            "chunk": min(length, engine.capabilities.max_step_tokens),
            "seconds": seconds,
            "tokens_per_s": length / seconds,
            "tflop_per_s": flops / seconds / 1e12,
            "flop_share": flops / seconds / ceiling,
        }
        bench.check_time()


def _prefill_s(subject: Subject, engine: TorchEngine, length: int, number: int) -> float:
    prompt = tokens(random.Random(f"prefill/{length}/{number}"), length, engine.capabilities.vocab)
    context = engine.open(prompt, sampling=GREEDY)
    settle(subject.bench.device)
    began = time.perf_counter()
    prefill(engine, [context])
    settle(subject.bench.device)
    seconds = time.perf_counter() - began
    engine.release(context)
    return seconds


def decodes(subject: Subject) -> Iterator[Row]:
    """Steps of one token each; the bytes that a step must read over its median time."""
    engine, bench = subject.engine(), subject.bench
    facts, ceiling = subject.facts(), bench.limits().memory
    for batch, length in bench.sizes.decodes:
        room = engine.capabilities.kv_tokens // (length + bench.sizes.steps + 32)
        if room < batch:
            yield {"batch": batch, "context": length, "error": f"the pool holds only {room} such contexts"}
            continue
        contexts = opened(engine, [length] * batch, f"decode/{batch}")
        busy = _busy_s(engine, contexts, subject)
        times = _step_times(engine, contexts, bench.sizes.steps, subject)
        released(engine, contexts)
        seconds = statistics.median(times)
        attended = length + bench.sizes.steps / 2
        yield {
            "batch": batch,
            "context": length,
            "graphs": engine.recorded_graphs,
            "step_ms": seconds * 1e3,
            "step_p95_ms": sorted(times)[int(0.95 * (len(times) - 1))] * 1e3,
            "idle_share": max(0.0, 1 - busy / seconds) if busy else None,
            "tokens_per_s": batch / seconds,
            "gb_per_s": facts.decode_bytes(batch, attended) / seconds / 1e9,
            "bandwidth_share": facts.decode_bytes(batch, attended) / seconds / ceiling,
        }
        bench.check_time()


def _step_times(engine: TorchEngine, contexts: list[Context], steps: int, subject: Subject) -> list[float]:
    plan = [(context, 1) for context in contexts]
    settle(subject.bench.device)
    times: list[float] = []
    for _ in range(steps):
        began = time.perf_counter()
        for output in engine.step(plan):
            if output.error is not None:
                raise RuntimeError(output.error)
        times.append(time.perf_counter() - began)
    return times


def _busy_s(engine: TorchEngine, contexts: list[Context], subject: Subject) -> float | None:
    """Seconds that the device is at work in a step, by its own count; None where nothing counts."""
    plan = [(context, 1) for context in contexts]
    for _ in range(3):  # the first one may record a graph
        engine.step(plan)
    if subject.bench.device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    steps = 3
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        for _ in range(steps):
            engine.step(plan)
        settle(subject.bench.device)
    busy: float = sum(event.self_device_time_total for event in watched.key_averages())
    return busy / 1e6 / steps or None
