"""Decodes on the same text with more and less of a mixture in memory, in turns, and compares with what is possible."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios_evals.moe_bench.bound import fewest_reads
from aios_evals.moe_bench.models import ROUTINGS, SIZES, make, text
from aios_evals.moe_bench.slow import SlowStore
from aios_evals.moe_bench.trained import Size

if TYPE_CHECKING:
    from aios_kernel.engine.expert_options import ExpertOptions
    from aios_kernel.engine.torch.experts.mixture import CachedMixture
    from aios_kernel.engine.torch.experts.transfer import Store

SHARES = (0.25, 0.5, 0.75, 1.0)
_PROMPT = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        size: of the models; None: that of `models.SIZES`.
        routings: of `models.ROUTINGS`.
        batches: contexts that decode together.
        tokens: steps of each round.
        rounds: in which all take turns; medians are given.
        learn: tokens of other texts that the predictor has seen before.
        bytes_per_s: of the simulated device that experts are read from; 0: the checkpoint's own files, whose pages the
            system is told to forget as they are read.
        int8: share of experts that the rows of mode `predict_int8` serve in int8.
    """

    size: Size | None = None
    routings: Sequence[str] = ROUTINGS
    batches: Sequence[int] = (1, 8)
    tokens: int = 16
    rounds: int = 4
    learn: int = 128
    bytes_per_s: float = 1e9
    int8: float = 0.5


@dataclass(frozen=True, slots=True)
class _Run:
    """A plan for one of its routings."""

    plan: Plan
    routing: str

    @property
    def size(self) -> Size:
        return self.plan.size or SIZES[self.routing]


@dataclass(slots=True)
class _Runner:
    """One engine with its cache, and what was measured of it."""

    mode: str
    share: float
    engine: Any
    mixture: CachedMixture | None
    contexts: list[Any] = field(default_factory=list[Any])
    seconds: list[float] = field(default_factory=list[float])
    cpu_seconds: list[float] = field(default_factory=list[float])
    """Of the engine's thread."""
    argmax: list[int | None] = field(default_factory=list[int | None])
    asked: list[list[int]] = field(default_factory=list[list[int]])
    resident: list[int] = field(default_factory=list[int])
    before: dict[str, float] = field(default_factory=dict[str, float])


def run(plan: Plan) -> list[dict[str, Any]]:
    """Rows of every routing, batch, share in memory and mode."""
    import torch

    from aios_kernel.engine._progress import progress_bars

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with progress_bars():
            return [row for routing in plan.routings for row in _routing(_Run(plan, routing))]
    finally:
        torch.set_num_threads(threads)


def _routing(run: _Run) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="aios-moe-") as name, ExitStack() as stack:
        make(run.routing, Path(name), run.size)
        runners = [*_runners(run, Path(name), stack)]
        for runner in runners:
            _learn(run, runner)
        for batch in run.plan.batches:
            yield from _batch(run, batch, runners)


def _batch(run: _Run, batch: int, runners: Sequence[_Runner]) -> Iterator[dict[str, Any]]:
    for runner in runners:
        _open(run, batch, runner)
    for _ in range(run.plan.rounds):
        for runner in runners:
            _round(run.plan, runner)
    rows = {(runner.mode, runner.share): runner for runner in runners}
    for runner in runners:
        yield _row(run, batch, runner, rows)


def _runners(run: _Run, folder: Path, stack: ExitStack) -> Iterator[_Runner]:
    from aios_kernel.engine.expert_options import ExpertOptions

    yield _Runner("plain", 1.0, *_plain(run.plan, folder, stack))
    for share in SHARES:
        yield _Runner("predict", share, *_cached(run, folder, ExpertOptions(share), stack))
        if share < 1:
            on_demand = ExpertOptions(share, mode="recency")
            yield _Runner("on_demand", share, *_cached(run, folder, on_demand, stack))
    if run.plan.int8:
        options = ExpertOptions(SHARES[0], run.plan.int8, folder=folder)
        yield _Runner("predict_int8", SHARES[0], *_cached(run, folder, options, stack))


def _plain(plan: Plan, folder: Path, stack: ExitStack) -> tuple[Any, None]:
    """The engine as it is without a cache: transformers' own experts."""
    import torch
    from transformers import Qwen3MoeForCausalLM

    model: Any = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return _engine(plan, model, stack), None


def _cached(run: _Run, folder: Path, options: ExpertOptions, stack: ExitStack) -> tuple[Any, CachedMixture]:
    import torch
    from transformers import Qwen3MoeForCausalLM

    from aios_kernel.engine.torch.experts.loading import class_without_experts, connect
    from aios_kernel.engine.torch.experts.transfer import HostStore

    def slowed(store: Store) -> Store:
        if not run.plan.bytes_per_s:
            return store
        return SlowStore(HostStore(store, run.size.layers * run.size.experts, pinned=False), run.plan.bytes_per_s)

    kind = class_without_experts(Qwen3MoeForCausalLM)
    model: Any = kind.from_pretrained(folder, dtype=torch.float32)
    mixture = connect(model, folder, options, slowed)
    return _engine(run.plan, model, stack), mixture


def _engine(plan: Plan, model: Any, stack: ExitStack) -> Any:
    from aios_kernel.engine.torch import TorchEngine

    room = max(plan.batches) * (_PROMPT + plan.tokens * plan.rounds + 64) + plan.learn + 64
    engine = TorchEngine(model, kv_tokens=room)
    stack.callback(engine.close)
    return engine


def _learn(run: _Run, runner: _Runner) -> None:
    """Let the predictor see another text, token by token as an agent writes it."""
    learn = run.plan.learn
    if runner.mixture is None or not learn:
        return
    (context,) = _contexts(run, runner.engine, [1], learn)
    while len(context.tokens) < _PROMPT + learn:
        runner.engine.step([(context, _PROMPT)])
    runner.engine.release(context)


def _open(run: _Run, batch: int, runner: _Runner) -> None:
    """Compute the prompts, and a few tokens to come to rest; then note where the figures begin."""
    from aios_kernel.engine.torch.experts.module import experts_in

    for context in runner.contexts:
        runner.engine.release(context)
    runner.seconds, runner.cpu_seconds, runner.argmax, runner.asked = [], [], [], []
    settle = 4
    forced = run.plan.tokens * run.plan.rounds + settle + 1
    runner.contexts = _contexts(run, runner.engine, range(2, 2 + batch), forced)
    while any(len(context.tokens) < _PROMPT + settle for context in runner.contexts):
        runner.engine.step([(context, _PROMPT) for context in runner.contexts])
    if runner.mixture is not None:
        runner.before = _figures(runner.mixture)
        runner.resident = runner.mixture.cache.resident.nonzero()[0].tolist()
        for module in experts_in(runner.engine._runner.model):
            module.connect(_Recording(runner.mixture, runner.asked))


def _contexts(run: _Run, engine: Any, seeds: Sequence[int], forced: int) -> list[Any]:
    from aios_kernel.engine.protocol import SamplingParams

    opened: list[Any] = []
    for seed in seeds:
        tokens = [*itertools.islice(text(run.routing, run.size, seed), _PROMPT + forced)]
        opened.append(engine.open(tokens[:_PROMPT], sampling=SamplingParams(forced=tuple(tokens[_PROMPT:]))))
    return opened


class _Recording:
    """Stands before a mixture and notes which experts every layer needs, for the bound."""

    def __init__(self, mixture: CachedMixture, asked: list[list[int]]) -> None:
        self._mixture, self._asked = mixture, asked

    def use(self, layer: int, chosen: Any, names: Any) -> Any:
        """See `experts.module.Source`."""
        base = layer * self._mixture.shape.expert.count
        self._asked.append([base + expert for expert in sorted({*chosen.reshape(-1).tolist()})])
        return self._mixture.use(layer, chosen, names)


def _round(plan: Plan, runner: _Runner) -> None:
    step = [(context, 1) for context in runner.contexts]
    began, began_cpu = time.perf_counter(), time.thread_time()
    outputs = [runner.engine.step(step) for _ in range(plan.tokens)]
    runner.seconds.append(time.perf_counter() - began)
    runner.cpu_seconds.append(time.thread_time() - began_cpu)
    runner.argmax += [output.argmax for each in outputs for output in each]


def _figures(mixture: CachedMixture) -> dict[str, float]:
    counts, history = mixture.cache.counts, mixture.history
    return {
        "hits": counts.hits,
        "late": counts.late,
        "misses": counts.misses,
        "prefetched": counts.prefetched,
        "bytes_read": counts.bytes_read,
        "waited_s": counts.waited_s,
        "right": history.right,
        "guessed": history.guessed,
        "by_chance": history.by_chance,
    }


def _row(run: _Run, batch: int, runner: _Runner, others: dict[tuple[str, float], _Runner]) -> dict[str, Any]:
    plan = run.plan
    speed = _speed(plan, batch, runner)
    whole = _speed(plan, batch, others["predict", 1.0])
    row: dict[str, Any] = {
        "routing": run.routing,
        "batch": batch,
        "resident": runner.share,
        "mode": runner.mode,
        "tokens_per_s": round(speed, 1),
        "ratio_to_all_resident": round(speed / whole, 3),
    }
    if ("on_demand", runner.share) in others and runner.mode != "on_demand":
        row["ratio_to_on_demand"] = round(speed / _speed(plan, batch, others["on_demand", runner.share]), 3)
    row["cpu_ms_per_step"] = round(statistics.median(runner.cpu_seconds) / plan.tokens * 1e3, 2)
    row["same_choices"] = _same(runner.argmax, others["predict", 1.0].argmax)
    if runner.mixture is not None:
        row |= _of_cache(run, batch, runner, whole)
    return row


def _of_cache(run: _Run, batch: int, runner: _Runner, whole: float) -> dict[str, Any]:
    """What the cache and the predictor did in the measured rounds, and what was possible."""
    plan, mixture = run.plan, runner.mixture
    assert mixture is not None
    did = {key: value - runner.before[key] for key, value in _figures(mixture).items()}
    asked, steps = max(1, did["hits"] + did["late"] + did["misses"]), plan.tokens * plan.rounds
    row: dict[str, Any] = {
        "waited_ms_per_step": round(did["waited_s"] / steps * 1e3, 2),
        "found": round(did["hits"] / asked, 3),
        "on_the_way": round(did["late"] / asked, 3),
        "read_mb_per_token": round(did["bytes_read"] / steps / batch / 1e6, 2),
        "repeated": round(_repeated(run.size, runner), 3),
        "top_fifth": round(_top_fifth(run.size, runner), 3),
    }
    if runner.mode != "on_demand" and did["guessed"]:
        row["predicted"] = round(did["right"] / did["guessed"], 3)
        row["predicted_by_chance"] = round(did["by_chance"] / did["guessed"], 3)
    if mixture.stored.cold is not None:
        status = mixture.status()
        row["int8_logit_difference"] = round(status.int8_logit_difference, 4)
        row["int8_perplexity_ratio"] = round(status.int8_perplexity_ratio, 6)
    else:
        capacity = mixture.cache.budget // mixture.shape.expert_bytes
        bytes_read = fewest_reads(runner.asked, capacity, runner.resident) * mixture.shape.expert_bytes
        bandwidth = _bandwidth(mixture)
        bound = max(steps * batch / whole, bytes_read / bandwidth)
        row["read_gb_per_s"] = round(bandwidth / 1e9, 2)
        row["bound_tokens_per_s"] = round(steps * batch / bound, 1)
        row["efficiency"] = round(bound / sum(runner.seconds), 3)
    return row


def _bandwidth(mixture: CachedMixture) -> float:
    """Bytes a second from where the experts are, measured: every other one is read once."""
    store, numbers = mixture.stored.store, range(0, mixture.shape.count, 2)
    into = memoryview(bytearray(store.stored_bytes(0)))
    began = time.perf_counter()
    for number in numbers:
        store.read(number, into)
    return len(into) * len(numbers) / (time.perf_counter() - began)


def _speed(plan: Plan, batch: int, runner: _Runner) -> float:
    return plan.tokens * batch / statistics.median(runner.seconds)


def _same(one: Sequence[int | None], two: Sequence[int | None]) -> float:
    """Share of places with the same greedy choice."""
    return sum(a == b for a, b in zip(one, two, strict=True)) / max(1, len(one))


def _repeated(size: Size, runner: _Runner) -> float:
    """Share of a layer's experts that it used in the pass before, too."""
    pairs = zip(runner.asked, runner.asked[size.layers :], strict=False)
    shares = [len({*before} & {*now}) / len(now) for before, now in pairs]
    return statistics.fmean(shares) if shares else 0.0


def _top_fifth(size: Size, runner: _Runner) -> float:
    """Share of all uses that falls on the fifth of the experts used most."""
    uses = [0] * (size.layers * size.experts)
    for number in itertools.chain.from_iterable(runner.asked):
        uses[number] += 1
    return sum(sorted(uses, reverse=True)[: len(uses) // 5]) / max(1, sum(uses))
