"""The bench: contexts with different adapters in one batch, beside the same batch on the model alone.

Requests of equal length on the 34 M model, one thread; adapters of every linear layer. Each round runs every case with
and without adapters, one after the other, and the ratio is of these pairs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from aios_evals.engine_bench.shapes import ensure
from aios_evals.engine_bench.worker import environment
from aios_evals.lora_bench.task import Answer, Case, Round, Task
from aios_kernel.errors import EngineError

ENGINES = ("torch", "peft")
DTYPES = ("float32", "bfloat16")
_LIMIT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What to measure.

    Attributes:
        engines: of `ENGINES`.
        dtypes: of `DTYPES`.
        model: a name of `engine_bench.shapes`.
        batch: requests at once.
        rank: of the adapters.
        loras: different adapters in a batch; again for several.
        registered: adapters that our engine has loaded in the case of many...
        active: ...and those of them that requests use, twice each.
        prompt: tokens of a prompt.
        new: tokens of an answer.
        rounds: to measure; the case of many and PEFT, which take longest, run fewer.
        compile: whether our engine compiles the model.
    """

    engines: Sequence[str] = ENGINES
    dtypes: Sequence[str] = ("float32",)
    model: str = "34m"
    batch: int = 64
    rank: int = 8
    loras: Sequence[int] = (0, 1, 8, 64)
    registered: int = 1000
    active: int = 100
    prompt: int = 96
    new: int = 48
    rounds: int = 3
    compile: bool = True

    def task(self, engine: str, dtype: str, folder: Path) -> Task:
        """What an engine is to do. PEFT keeps all adapters in its layers and has no case of many."""
        rounds = self.rounds if engine == "torch" else max(1, self.rounds // 3)
        cases = [Case(loras, self.batch, self.batch, rounds) for loras in self.loras]
        registered = max(1, *self.loras)
        if engine == "torch" and self.active:
            cases.append(Case(self.active, self.batch, 2 * self.active, max(1, rounds - 1)))
            registered = max(registered, self.registered)
        return Task(str(folder), dtype, self.rank, registered, cases, self.prompt, self.new, self.compile)


def run(asked: Asked, models: Path) -> tuple[list[dict[str, Any]], dict[str, str], list[str]]:
    """Rows `{engine, dtype, loras, registered, batch, rank, tokens_per_cpu_s, ratio_to_base, ...}`, versions, notes.

    `ratio_to_base` is tokens per CPU-second over those of the same requests without adapters, the median of the
    rounds; `step_ratio` the same of the time of steps that only decode. `models` is where the model is written.
    """
    folder = ensure(models, asked.model)
    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    notes: list[str] = []
    for dtype in asked.dtypes:
        for engine in asked.engines:
            task = asked.task(engine, dtype, folder)
            answer = _ask(engine, task)
            versions |= answer.versions
            notes.append(f"{engine} {dtype}: an adapter is loaded in {answer.load_s * 1e3:.1f} ms of CPU")
            rows += [_row(engine, task, case, answer.rounds) for case in task.cases]
    return rows, versions, notes


def _ask(engine: str, task: Task) -> Answer:
    command = [sys.executable, "-m", "aios_evals.lora_bench.worker", engine]
    done = subprocess.run(
        command, input=msgspec.json.encode(task), capture_output=True, env=environment(1), timeout=_LIMIT_S, check=False
    )
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise EngineError(
            f"the worker of {engine} ended: {words[-1] if words else done.returncode}",
            fix="make setup (it installs peft); aios bench lora --engine torch leaves PEFT out",
        )
    return msgspec.json.decode(done.stdout, type=Answer)


def _row(engine: str, task: Task, case: Case, rounds: Sequence[Round]) -> dict[str, Any]:
    own = [found for found in rounds if found.case == case]
    tokens = case.requests * task.new
    steps = [(found.base_step_s, found.step_s) for found in own if found.step_s and found.base_step_s]
    return {
        "engine": engine,
        "dtype": task.dtype,
        "loras": case.loras,
        "registered": task.registered,
        "batch": case.batch,
        "requests": case.requests,
        "rank": task.rank,
        "tokens_per_cpu_s": round(tokens / statistics.median(found.cpu_s for found in own), 1),
        "ratio_to_base": round(statistics.median(found.base_cpu_s / found.cpu_s for found in own), 3),
        "time_ratio": round(statistics.median(found.cpu_s / found.base_cpu_s for found in own), 3),
        "step_ms": round(1e3 * statistics.median(step for _, step in steps), 2) if steps else None,
        "step_ratio": round(statistics.median(step / base for base, step in steps), 3) if steps else None,
    }
