"""Contexts off the device and back, beside the link's own rate; and how little a fork costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from aios_evals.gpu.bench import Row, Subject, opened, released
from aios_evals.gpu.ceilings import settle
from aios_kernel.engine.torch import TorchEngine

_TRIES = 4


def swaps(subject: Subject) -> Iterator[Row]:
    """One context out and in, alone, and while others decode."""
    engine, bench = subject.engine(), subject.bench
    length = min(bench.sizes.switched, engine.capabilities.kv_tokens // 4)
    link = bench.limits()
    (context,) = opened(engine, [length], "swap")
    best_out = best_in = float("inf")
    blocked = float("inf")
    nbytes = 0
    for _ in range(_TRIES):
        out_s, in_s, blocked_s, nbytes, context = _round_trip(engine, context, subject)
        best_out, best_in, blocked = min(best_out, out_s), min(best_in, in_s), min(blocked, blocked_s)
        bench.check_time()
    bound = nbytes / link.to_host + nbytes / link.to_device
    yield {
        "tokens": length,
        "megabytes": nbytes / 1e6,
        "out_gb_per_s": nbytes / best_out / 1e9,
        "in_gb_per_s": nbytes / best_in / 1e9,
        "switch_ms": (best_out + best_in) * 1e3,
        "bound_ms": bound * 1e3,
        "efficiency": bound / (best_out + best_in),
        "caller_blocked_ms": blocked * 1e3,
    }
    yield _beside(engine, context, subject)
    engine.release(context)


def _round_trip(engine: TorchEngine, context: Any, subject: Subject) -> tuple[float, float, float, int, Any]:
    """Seconds out and in until the bytes are there, seconds that the engine's thread was held up, and what moved."""
    settle(subject.bench.device)
    began = time.perf_counter()
    snapshot: Any = engine.snapshot(context)
    blocked = time.perf_counter() - began
    snapshot.wait()
    out_s = time.perf_counter() - began
    snapshot.pool = ""  # as if its blocks had been taken by others: everything is copied back
    began = time.perf_counter()
    back: Any = engine.restore(snapshot)
    blocked += time.perf_counter() - began
    if back.arrival is not None:
        back.arrival.result()
    settle(subject.bench.device)
    return out_s, time.perf_counter() - began, blocked, snapshot.nbytes, back


def _beside(engine: TorchEngine, context: Any, subject: Subject) -> Row:
    """How much slower others decode while a context goes out and comes in."""
    others = opened(engine, [64] * 4, "beside")
    plan = [(other, 1) for other in others]

    def step_s() -> float:
        began = time.perf_counter()
        engine.step(plan)
        return time.perf_counter() - began

    quiet = min(step_s() for _ in range(6))
    snapshot: Any = engine.snapshot(context)
    during = [step_s()]
    while not snapshot.copied.done() and subject.bench.left_s > 0:
        during.append(step_s())
    snapshot.pool = ""
    back: Any = engine.restore(snapshot)
    during.append(step_s())
    while back.arrival is not None and not back.arrival.done() and subject.bench.left_s > 0:
        during.append(step_s())
    released(engine, [*others, back])
    return {"steps_beside": len(during), "step_ms": quiet * 1e3, "step_beside_ms": max(during) * 1e3}


def forks(subject: Subject) -> Iterator[Row]:
    """A fork, and the first step of both, in which the twin's last block is copied."""
    engine, bench = subject.engine(), subject.bench
    (context,) = opened(engine, [min(bench.sizes.switched, engine.capabilities.kv_tokens // 4) - 5], "fork")
    free = engine.kv_free()
    times: list[float] = []
    twins: list[Any] = []
    for _ in range(8):
        began = time.perf_counter()
        twins.append(engine.fork(context))
        times.append(time.perf_counter() - began)
    taken = free - engine.kv_free()
    outputs = engine.step([(one, 1) for one in (context, *twins)])
    same = len({output.token for output in outputs}) == 1
    row = {
        "tokens": len(context.tokens),
        "fork_us": min(times) * 1e6,
        "kv_tokens_a_fork": taken / len(twins),
        "kv_tokens_a_branch": (free - engine.kv_free()) / len(twins),
        "identical": float(same),
    }
    released(engine, [context, *twins])
    yield row
