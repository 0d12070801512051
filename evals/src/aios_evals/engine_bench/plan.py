"""Which cases are measured with which settings; the default is cut so that it ends within six minutes on two cores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aios_evals.engine_bench.case import BATCHES, LENGTHS, WORKLOADS, Case
from aios_evals.engine_bench.peers import ENGINES, Engine
from aios_evals.engine_bench.shapes import SHAPES

DTYPES = ("float32", "bfloat16")
MODEL = "34m"
_SCALING = (Case.decode(32), Case.prefill(1024))
"""What the default also measures on two threads, in float32, with the engines that are compared there."""
_SCALED = ("generate", "torch", "vllm")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user asked for; None is the default."""

    engines: Sequence[str] | None = None
    models: Sequence[str] | None = None
    dtypes: Sequence[str] | None = None
    threads: Sequence[int] | None = None
    workloads: Sequence[str] | None = None
    batches: Sequence[int] | None = None
    full: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """Cases that run on the same worker processes, and the engines of each."""

    model: str
    dtype: str
    threads: int
    cases: Mapping[Case, tuple[str, ...]]

    @property
    def engines(self) -> tuple[str, ...]:
        """All of them, in order."""
        return tuple(dict.fromkeys(name for names in self.cases.values() for name in names))


def settings(asked: Asked) -> list[Setting]:
    """What to measure, in order."""
    engines = [engine for engine in ENGINES if asked.engines is None or engine.name in asked.engines]
    found: list[Setting] = []
    for model in asked.models or (tuple(SHAPES) if asked.full else (MODEL,)):
        for dtype in asked.dtypes or DTYPES:
            cases = {case: _able(case, engines, asked) for case in _cases(asked, dtype)}
            found.extend(Setting(model, dtype, threads, cases) for threads in _threads(asked))
        found.extend(_scaling(asked, model, engines))
    return [setting for setting in found if setting.engines]


def _threads(asked: Asked) -> Sequence[int]:
    return asked.threads or ((1, 2) if asked.full and _cores() > 1 else (1,))


def _cases(asked: Asked, dtype: str) -> list[Case]:
    batches = asked.batches or [batch for batch in BATCHES if asked.full or batch < 128 or dtype == "bfloat16"]
    cases = {
        "decode": [Case.decode(batch) for batch in batches],
        "prefill": [Case.prefill(length) for length in LENGTHS],
        "agents": [Case.agents()],
    }
    return [case for workload in WORKLOADS if workload in (asked.workloads or WORKLOADS) for case in cases[workload]]


def _able(case: Case, engines: Sequence[Engine], asked: Asked) -> tuple[str, ...]:
    every = asked.full or asked.batches
    return tuple(one.name for one in engines if every or one.largest is None or case.batch <= one.largest)


def _scaling(asked: Asked, model: str, engines: Sequence[Engine]) -> list[Setting]:
    if asked.threads or asked.full or _cores() < 2 or "float32" not in (asked.dtypes or DTYPES):
        return []
    scaled = tuple(engine.name for engine in engines if engine.name in _SCALED)
    return [Setting(model, "float32", 2, {case: scaled for case in _cases(asked, "float32") if case in _SCALING})]


def _cores() -> int:
    return len(os.sched_getaffinity(0))
