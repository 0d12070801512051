"""Agents: growing conversations behind one system prompt, and recorded coding sessions, by everybody who can run them.

Efficiency is a lower bound over the time measured: the bound knows the ceilings of this very run, an endless cache, and
a perfect overlap of prefill and decode; nobody can be faster than it, whatever the policy.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import torch

from aios_evals.contention.run import row_of
from aios_evals.contention.served import Kernel, NoCodec
from aios_evals.contention.sessions import Scale, Session, load
from aios_evals.engine_bench.case import Case
from aios_evals.engine_bench.workers.generate import GeneratePeer
from aios_evals.engine_bench.workers.loop import Peer, converse
from aios_evals.engine_bench.workers.torch_engine import TorchPeer
from aios_evals.engine_bench.workers.transformers_cb import ContinuousPeer
from aios_evals.gpu.bench import Row, Subject
from aios_evals.schedule.cost import Cost, bound
from aios_evals.schedule.workload import Call, Program
from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.plugins import Plugins

POLICIES = ("fifo", "program")
_OVERCOMMIT = 4.0
"""The sessions' longest contexts over the pool."""
_HOST_POOLS = 4
_MAX_BATCH = 256


def peers(subject: Subject) -> Iterator[Row]:
    """The agent workload by transformers itself: `generate` for some conversations, continuous batching for all."""
    count, _, few = subject.bench.sizes.agents
    yield _conversed(subject, "generate", GeneratePeer(subject.plain()), few)
    subject.bench.check_time()
    batching = ContinuousPeer(subject.plain())
    try:
        yield _conversed(subject, "transformers_cb", batching, count)
    finally:
        batching.close()
        subject.plain().set_attn_implementation("sdpa")  # it has put its own in place


def agents(subject: Subject) -> Iterator[Row]:
    """The same by our engine alone, and through the kernel under each policy."""
    count, turns, _ = subject.bench.sizes.agents
    pool = 2 * count * Case.agents().length
    peer = TorchPeer(subject.fresh(pool))
    try:
        yield _conversed(subject, "engine", peer, count)
    finally:
        peer.close()
    for policy in POLICIES:
        subject.bench.check_time()
        with closing(_kernel(subject, policy, pool)) as served:
            began = time.perf_counter()
            answered = _converse_through(served, _turns(subject, count, turns, policy))
            yield _agents_row(subject, f"kernel_{policy}", count, time.perf_counter() - began, answered)


def sessions(subject: Subject) -> Iterator[Row]:
    """Recorded sessions, cut and scaled, all at once, through the kernel, in a pool that holds a quarter of them."""
    bench = subject.bench
    if bench.data is None:
        yield {"note": "AIOS_DATA is not set: the recorded sessions are not part of the project"}
        return
    programs, lengths, window = bench.sizes.sessions
    found = load(bench.data, programs, Scale(lengths=lengths, window=window, calls=3 if bench.tiny else 8))
    pool = max(int(sum(s.longest for s in found) / _OVERCOMMIT), max(s.longest for s in found) + 256)
    least = _session_bound(subject, found)
    for policy in POLICIES:
        # Other texts for each: the pool is new, but nobody is to wonder.
        own = [dataclasses.replace(session, name=f"{policy}/{session.name}") for session in found]
        row = row_of(lambda policy=policy: _kernel(subject, policy, pool), own)
        row |= {"bound_s": least, "efficiency": least / row["makespan_s"]}
        yield {"engine": f"kernel_{policy}", "pool": pool, **row}
        bench.check_time()


def _kernel(subject: Subject, policy: str, pool: int) -> Kernel:
    engine: Any = subject.fresh(pool)
    codec: Any = NoCodec()
    host = _HOST_POOLS * pool * subject.facts().kv_bytes
    decides = Plugins().named("aios_kernel_policies")[policy]({})
    return Kernel(LoadedModel(subject.shape.name, engine, codec), decides, host)


def _turns(subject: Subject, count: int, turns: int, seed: str) -> list[list[list[int]]]:
    """New prompt tokens, [turns][conversations][tokens]."""
    case = Case.agents()
    vocab = subject.shape.config(tiny=subject.bench.tiny).vocab_size
    return case.turns(vocab, sum(map(ord, seed)), count)[:turns]


def _conversed(subject: Subject, name: str, peer: Peer, count: int) -> Row:
    turns = subject.bench.sizes.agents[1]
    case = Case.agents()
    peer.generate([[*range(8, 40)]], 2)  # kernels are compiled, memory is taken
    with torch.inference_mode():
        found = converse(peer, _turns(subject, count, turns, name), case.n_tokens)
    answered = count * turns * case.n_tokens
    return _agents_row(subject, name, count, found["wall_s"], answered)


def _agents_row(subject: Subject, name: str, count: int, seconds: float, answered: int) -> Row:
    turns = subject.bench.sizes.agents[1]
    least = bound(_cost(subject), _agent_programs(count, turns), None, _MAX_BATCH).makespan_s
    return {
        "engine": name,
        "conversations": count,
        "turns": turns,
        "seconds": seconds,
        "tokens_per_s": answered / seconds,
        "bound_s": least,
        "efficiency": least / seconds,
    }


def _converse_through(served: Kernel, turns: Sequence[Sequence[Sequence[int]]]) -> int:
    """Hold conversations at once, each at its own pace; give how many tokens were answered."""
    answered: list[int] = []
    failed: list[BaseException] = []

    def live(row: int) -> None:
        history: list[int] = []
        try:
            for turn in turns:
                history += turn[row]
                history += served.ask(f"agent-{row}", list(history), Case.agents().n_tokens).tokens
                answered.append(Case.agents().n_tokens)
        except Exception as error:  # noqa: BLE001 - told by the thread that waits for all
            failed.append(error)
        served.leave(f"agent-{row}")

    threads = [threading.Thread(target=live, args=(row,)) for row in range(len(turns[0]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sum(answered)


def _agent_programs(count: int, turns: int) -> list[Program]:
    """The agent workload as the bound sees it: the system prompt is computed once, every history is kept."""
    first, later = (len(turn[0]) for turn in Case.agents().turns(512, 0, 1)[:2])
    reply, system = Case.agents().n_tokens, first - later
    programs: list[Program] = []
    for row in range(count):
        calls: list[Call] = []
        kept = system if row else 0
        for turn in range(turns):
            prompt = first + turn * (later + reply)
            calls.append(Call(prompt, reply, kept))
            kept = prompt + reply
        programs.append(Program(f"agent-{row}", tuple(calls)))
    return programs


def _session_bound(subject: Subject, found: Sequence[Session]) -> float:
    programs = [
        Program(
            session.name,
            tuple(
                Call(call.prompt, call.output, session.kept(number), call.think_s)
                for number, call in enumerate(session.calls)
            ),
        )
        for session in found
    ]
    return bound(_cost(subject), programs, None, _MAX_BATCH).makespan_s


def _cost(subject: Subject) -> Cost:
    return Cost(subject.bench.limits().gpu(), subject.facts().model(subject.shape.name))
