"""The same sessions through every policy, ours and a server's: when each program was done, and what was computed."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aios_evals.contention.served import Kernel, NoCodec, Served
from aios_evals.contention.sessions import Scale, Session, load
from aios_evals.contention.vllm_server import VllmServer, python_of
from aios_kernel.chat.protocol import LoadedModel

VOCABULARY = 8192
LRU, VLLM = "engine_lru", "vllm"
POLICIES = ("program", "fair", "fifo", LRU, VLLM)
_PAGE = 32


@dataclass(frozen=True, slots=True)
class Asked:
    """What to run.

    Attributes:
        data: folder of the recordings.
        models: folder for the bench's model.
        peers: folder of the peers' environments.
        policies: of the kernel, and `engine_lru` and `vllm`.
        programs: sessions at once.
        overcommit: situations: the sessions' longest contexts over the pool.
        threads: of each engine.
        repeats: runs of each policy; the one with the median mean completion is reported.
    """

    data: Path
    models: Path
    peers: Path
    policies: Sequence[str]
    programs: int = 12
    overcommit: Sequence[float] = (4.0, 0.8)
    host_pools: float = 4.0
    threads: int = 1
    repeats: int = 1
    scale: Scale = field(default_factory=Scale)


@dataclass(slots=True)
class Tally:
    """What the programs of one run counted."""

    done_s: list[float] = field(default_factory=list[float])
    prompt: int = 0
    cached: int = 0
    output: int = 0
    failed: list[str] = field(default_factory=list[str])
    lock: threading.Lock = field(default_factory=threading.Lock)


def run(asked: Asked) -> tuple[list[dict[str, Any]], list[str]]:
    """A row a policy and situation; and notes on how it was measured and what was left out."""
    from aios_evals.engine_bench.shapes import ensure

    sessions = load(asked.data, asked.programs, asked.scale)
    model = ensure(asked.models, "34m")
    notes = _notes(asked)
    rows: list[dict[str, Any]] = []
    for over in asked.overcommit:
        working = sum(session.longest for session in sessions)
        window = -(-max(session.longest for session in sessions) // _PAGE) * _PAGE
        pool = max(int(working / over), window + 2 * _PAGE) // _PAGE * _PAGE  # vllm asks for room for a whole window
        found: list[dict[str, Any]] = []
        for policy in asked.policies:
            make = _maker(asked, policy, model, pool, window)
            if make is None:
                notes.append(f"{policy} was left out: it is not installed here")
                continue
            runs = sorted((row_of(make, sessions) for _ in range(asked.repeats)), key=lambda row: row["mean_s"])
            room = {"pool": pool, "host": 0 if policy == VLLM else int(asked.host_pools * pool)}
            load_of = {"working_set_over_pool": round(working / pool, 2)}
            found.append({"policy": policy, **room, **load_of, **runs[len(runs) // 2]})
        rows += _compared(found)
    return rows, sorted(set(notes))


def _maker(asked: Asked, policy: str, model: Path, pool: int, window: int) -> Callable[[], Served] | None:
    if policy == VLLM:
        python = python_of(asked.peers)
        return None if python is None else lambda: VllmServer(python, model, pool, window, asked.threads)
    from aios_kernel.plugins import Plugins

    known = Plugins().named("aios_kernel_policies")
    name = "fifo" if policy == LRU else policy
    return None if name not in known else lambda: _kernel(asked, known[name]({}), model, pool, held=policy != LRU)


def _kernel(asked: Asked, policy: Any, model: Path, pool: int, *, held: bool) -> Served:
    import torch
    from transformers import AutoModelForCausalLM

    from aios_kernel.engine.torch import TorchEngine

    torch.set_num_threads(asked.threads)
    weights: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    engine: Any = TorchEngine(weights.eval(), kv_tokens=pool)
    if not held:
        engine.capabilities = dataclasses.replace(engine.capabilities, holds=False)
    config = weights.config
    width = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    codec: Any = NoCodec()
    return Kernel(LoadedModel("34m", engine, codec), policy, int(asked.host_pools * pool) * width)


def row_of(make: Callable[[], Served], sessions: Sequence[Session]) -> dict[str, Any]:
    """Run all sessions at once on what `make` gives, and close it. Raises RuntimeError when a program failed."""
    tally = Tally()
    with closing(make()) as served:
        began = time.monotonic()
        threads = [threading.Thread(target=_live, args=(served, session, tally, began)) for session in sessions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        makespan = time.monotonic() - began
        counts = served.counts()
    if tally.failed:
        raise RuntimeError(f"{len(tally.failed)} programs failed, the first with: {tally.failed[0]}")
    done, needed = sorted(tally.done_s), sum(session.needed for session in sessions)
    computed = tally.prompt - tally.cached + tally.output
    return {
        "programs": len(sessions),
        "mean_s": round(sum(done) / len(done), 3),
        "p50_s": round(_quantile(done, 0.5), 3),
        "p95_s": round(_quantile(done, 0.95), 3),
        "p99_s": round(_quantile(done, 0.99), 3),
        "makespan_s": round(makespan, 3),
        "computed_tokens": computed,
        "cached_tokens": tally.cached,
        "amplification": round(computed / needed, 3),
        **counts,
    }


def _live(served: Served, session: Session, tally: Tally, began: float) -> None:
    """One program: think, ask, and build the next prompt from what was answered."""
    said: list[list[int]] = []
    try:
        for number, call in enumerate(session.calls):
            if number:
                served.pause(session.name)
            paused = time.monotonic()
            time.sleep(call.think_s)
            if number:
                served.resume(session.name, time.monotonic() - paused)
            prompt = session.prompt(number, said, VOCABULARY)
            answer = served.ask(session.name, prompt, call.output)
            said.append([*prompt, *answer.tokens])
            with tally.lock:
                tally.prompt += len(prompt)
                tally.cached += answer.cached
                tally.output += len(answer.tokens)
    except Exception as error:  # noqa: BLE001 - told by the thread that waits for all
        tally.failed.append(f"{type(error).__name__}: {error}")
    with tally.lock:
        tally.done_s.append(time.monotonic() - began)
    served.leave(session.name)


def _compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean completion against the served peer, where it ran: above 1 is faster than it."""
    peer = next((row["mean_s"] for row in rows if row["policy"] == VLLM), None)
    return [{**row, "ratio_to_vllm": round(peer / row["mean_s"], 3) if peer else None} for row in rows]


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _notes(asked: Asked) -> list[str]:
    scale = asked.scale
    return [
        f"sessions: the first {scale.calls} calls of each, lengths divided by {scale.lengths}, think times by "
        f"{scale.thinks:g} and at most {scale.longest_think_s:g} s; closed loop, all programs start at once",
        "the pool is the sum of the longest contexts over 4, or over 0.8: everything fits",
        "every prompt contains what that engine answered before; lengths are forced: no token ends an answer",
        f"34 M weights in float32, {asked.threads} thread an engine; ours: dispatcher, contexts, policy and engine "
        "in process; vllm: its own HTTP server on loopback, prefix cache on",
        "vllm has no host memory beside its pool: the offloading of vLLM 0.32 (--kv-offloading-size) refuses to run on "
        "anything but a CUDA-like or XPU device",
        f"{LRU}: our engine and fifo, nothing held in the prefix cache: eviction is plain LRU",
        "mean_s to p99_s: completion of whole programs, think times included; amplification: computed over needed",
    ]
