"""What every section gets: a model at a time, the ceilings, sizes and time."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from aios_evals.gpu.ceilings import Ceilings
from aios_evals.gpu.shapes import Facts, Shape
from aios_kernel.engine.protocol import Context, SamplingParams
from aios_kernel.engine.torch import TorchEngine

Row = dict[str, Any]
GREEDY = SamplingParams()


class OutOfTime(Exception):
    """A section had no time left for all that it wanted to measure."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        prompts: lengths of prefilled prompts.
        decodes: batch and context of the decode steps.
        steps: that are timed of each.
        switched: tokens of the contexts that are swapped.
        generated: tokens whose equality is checked.
        agents: conversations of the agent workload, their turns, and how many of them `generate` answers.
        sessions: of recorded work, what their lengths are divided by, and their longest context.
        loras: active ones, and the batch.
        kv_tokens: of the pool; None takes what is free.
        step_tokens: of one step.
    """

    prompts: Sequence[int]
    decodes: Sequence[tuple[int, int]]
    steps: int
    switched: int
    generated: int
    agents: tuple[int, int, int]
    sessions: tuple[int, int, int]
    loras: tuple[Sequence[int], int]
    kv_tokens: int | None
    step_tokens: int


FULL = Sizes(
    prompts=(2048, 8192),
    decodes=((1, 2048), (8, 2048), (64, 1024), (256, 512)),
    steps=40,
    switched=8192,
    generated=32,
    agents=(16, 6, 2),
    sessions=(12, 8, 32_000),
    loras=((1, 64), 64),
    kv_tokens=None,
    step_tokens=4096,
)
TINY = Sizes(
    prompts=(48,),
    decodes=((1, 32), (4, 24)),
    steps=3,
    switched=64,
    generated=5,
    agents=(3, 2, 1),
    sessions=(2, 1500, 400),
    loras=((1, 2), 2),
    kv_tokens=4096,
    step_tokens=256,
)


@dataclass(slots=True)
class Bench:
    """One run.

    Attributes:
        device: that is measured.
        tiny: whether everything is small.
        data: folder of the recordings, if there is one.
        until: when everything must have ended, by `time.monotonic`.
        ceilings: of the device.
        limit: when the present section has to end.
    """

    device: torch.device
    tiny: bool
    data: Path | None
    until: float
    ceilings: Ceilings | None = None
    limit: float = float("inf")
    rows: list[Row] = field(default_factory=list[Row])

    @property
    def sizes(self) -> Sizes:
        """How much is measured."""
        return TINY if self.tiny else FULL

    @property
    def dtype(self) -> torch.dtype:
        """Of the models."""
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    @property
    def left_s(self) -> float:
        """Of the section's time."""
        return min(self.limit, self.until) - time.monotonic()

    def check_time(self) -> None:
        """Raise OutOfTime when the section's time is up; asked between two measurements."""
        if self.left_s <= 0:
            raise OutOfTime("its time was up")

    def limits(self) -> Ceilings:
        """The ceilings. Raises RuntimeError when they could not be measured: nothing can be a share of them then."""
        if self.ceilings is None:
            raise RuntimeError("the device's ceilings were not measured")
        return self.ceilings


@dataclass(slots=True)
class Subject:
    """A model that is measured, first as transformers has it, then with our engine.

    Attributes:
        shape: of the model.
        bench: the run.
    """

    shape: Shape
    bench: Bench
    _model: Any = None
    _facts: Facts | None = None
    _taken: bool = False
    _engine: TorchEngine | None = None

    def plain(self) -> Any:
        """The model as transformers has it. Raises RuntimeError once an engine has taken it over."""
        if self._taken:
            raise RuntimeError("an engine has taken the model over")
        if self._model is None:
            self._model = self._built()
            self._facts = Facts.of(self._model)
        return self._model

    def facts(self) -> Facts:
        """What decides the model's limits."""
        if self._facts is None:
            self.plain()
        assert self._facts is not None
        return self._facts

    def engine(self) -> TorchEngine:
        """Our engine with the whole pool."""
        if self._engine is None:
            self._engine = self._made(self.bench.sizes.kv_tokens)
        return self._engine

    def fresh(self, kv_tokens: int) -> TorchEngine:
        """Another engine with a pool of this size, ready for its first step, for somebody who closes it."""
        self._drop_engine()
        engine = self._made(kv_tokens)
        engine.warm_up()
        return engine

    def close(self) -> None:
        """Free everything."""
        self._drop_engine()
        self._model = None
        self._tidy()

    def _built(self) -> Any:
        return self.shape.build(self.shape.config(tiny=self.bench.tiny), self.bench.device, self.bench.dtype)

    def _made(self, kv_tokens: int | None) -> TorchEngine:
        model = self.plain() if not self._taken else self._model
        if self._taken and self.bench.device.type == "cpu":  # there an engine packs the weights for itself
            model = self._built()
        self._taken = True
        self._tidy()
        return TorchEngine(model, kv_tokens=kv_tokens, max_step_tokens=self.bench.sizes.step_tokens)

    def _drop_engine(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _tidy(self) -> None:
        gc.collect()
        if self.bench.device.type == "cuda":
            torch.cuda.empty_cache()


def tokens(chooser: random.Random, count: int, vocab: int) -> list[int]:
    """Random ones."""
    return [chooser.randrange(8, vocab) for _ in range(count)]


def opened(engine: TorchEngine, lengths: Sequence[int], seed: str) -> list[Context]:
    """Contexts of random prompts, prefilled, each with one token emitted."""
    chooser = random.Random(seed)
    vocab = engine.capabilities.vocab
    contexts = [engine.open(tokens(chooser, length, vocab), sampling=GREEDY) for length in lengths]
    prefill(engine, contexts)
    return contexts


def prefill(engine: TorchEngine, contexts: Sequence[Context]) -> None:
    """Step contexts until each has nothing left but its newest token."""
    waiting = [context for context in contexts if context.pending > 1]
    while waiting:
        budget, plan = engine.capabilities.max_step_tokens, list[tuple[Context, int]]()
        for context in waiting:
            if budget:
                plan.append((context, min(budget, context.pending)))
                budget -= plan[-1][1]
        for output in engine.step(plan):
            if output.error is not None:
                raise RuntimeError(output.error)
        waiting = [context for context in waiting if context.pending > 1]


def released(engine: TorchEngine, contexts: Sequence[Context]) -> None:
    """Let go of contexts."""
    for context in contexts:
        engine.release(context)
