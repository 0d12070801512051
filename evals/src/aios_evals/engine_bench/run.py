"""Running the bench: workers for every setting, cases one after the other, rows at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aios_evals.engine_bench.case import Case
from aios_evals.engine_bench.measure import BUDGET_S, ROUNDS, Measured, compare, measure
from aios_evals.engine_bench.peers import ENGINES, ORACLE, Engine
from aios_evals.engine_bench.plan import Asked, Setting, settings
from aios_evals.engine_bench.shapes import SHAPES, ensure
from aios_evals.engine_bench.worker import Worker, WorkerFailed

_METHOD = (
    f"rates are of the best of up to {ROUNDS} runs after a warm-up, engines in turn; an engine that has run a case for "
    f"{BUDGET_S:g} s runs it no more",
    "sequences: conversations that an engine ran of the batch; one that answers them one after the other runs a few",
    f"identical: share of conversations with the greedy tokens of {ORACLE} in float32, up to its first tie",
)


@dataclass(slots=True)
class Bench:
    """A run of the bench.

    Args:
        peers: folder of the peers' environments.
        models: folder where the models are written.
    """

    peers: Path
    models: Path
    notes: list[str] = field(default_factory=lambda: [*_METHOD])
    versions: dict[str, str] = field(default_factory=dict[str, str])
    """Of the engines that ran, by distribution."""
    _began: float = field(default_factory=time.monotonic, init=False)

    def run(self, asked: Asked) -> list[dict[str, Any]]:
        """Measure what was asked for; `{engine, workload, ..., ratio_to_generate}` rows (see `case`, `_rows`).

        Ctrl-C ends it early: the rows so far are the result, and a note says so.
        """
        rows: list[dict[str, Any]] = []
        try:
            for setting in settings(asked):
                self._measure_setting(setting, rows)
        except KeyboardInterrupt:
            self._note("interrupted: later rows are missing")
        return rows

    def _measure_setting(self, setting: Setting, rows: list[dict[str, Any]]) -> None:
        with ExitStack() as stack:
            workers = self._start(stack, setting)
            for case in setting.cases:
                measured = _rows(case, setting, self._measure(case, setting, workers))
                rows.extend(measured)  # before anybody hears of them and interrupts
                for row in measured:
                    self._progress(f"  {row['engine']}: {row['tokens_per_cpu_s']:,.0f} tokens per CPU-second")

    def _start(self, stack: ExitStack, setting: Setting) -> dict[str, tuple[Engine, Worker]]:
        """Workers with the model loaded, all started at once: vLLM alone takes longer than the others together."""
        self._progress(f"{setting.model} {setting.dtype} {setting.threads} threads: {', '.join(setting.engines)} start")
        model = ensure(self.models, setting.model)
        workers: dict[str, tuple[Engine, Worker]] = {}
        for engine in (engine for engine in ENGINES if engine.name in setting.engines):
            command = engine.command(self.peers)
            if command is None:
                self._note(f"{engine.name} is not installed in {self.peers / str(engine.venv)}: make bench-peers")
            else:
                workers[engine.name] = engine, stack.enter_context(Worker(engine.name, command, setting.threads))
        loading = stack.enter_context(ThreadPoolExecutor(len(ENGINES)))
        loads = {name: loading.submit(worker.load, model, setting.dtype) for name, (_, worker) in workers.items()}
        for name, load in loads.items():
            try:
                self.versions |= load.result()
            except WorkerFailed as error:
                self._note(f"{name} did not start ({setting.model}, {setting.dtype}): {error}")
                del workers[name]
        return workers

    def _measure(
        self, case: Case, setting: Setting, workers: Mapping[str, tuple[Engine, Worker]]
    ) -> dict[str, Measured]:
        self._progress(
            f"{setting.model} {setting.dtype} {setting.threads} threads: {case.workload} {case.batch} x {case.length}"
        )

        def failed(name: str, error: WorkerFailed) -> None:
            self._note(
                f"{name} failed in {case.workload} ({setting.model}, {setting.dtype}, batch {case.batch}): {error}"
            )

        able = {name: workers[name] for name in setting.cases[case] if name in workers}
        found = measure(case, able, SHAPES[setting.model].vocab_size, failed)
        if setting.dtype == "float32" and ORACLE in found:
            try:
                compare(found, workers[ORACLE][1])
            except WorkerFailed as error:
                failed(ORACLE, error)
        return found

    def _progress(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", file=sys.stderr, flush=True)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self._progress(text)


def _rows(case: Case, setting: Setting, found: Mapping[str, Measured]) -> Sequence[dict[str, Any]]:
    rates = {name: case.counted(one.conversations) / one.cpu_s for name, one in found.items()}
    base = rates.get(ORACLE)
    return [
        {
            "engine": name,
            "workload": case.workload,
            "batch": case.batch,
            "length": case.length,
            "threads": setting.threads,
            "dtype": setting.dtype,
            "model": setting.model,
            "tokens_per_cpu_s": round(rates[name], 1),
            "tokens_per_s": round(case.counted(one.conversations) / one.wall_s, 1),
            "ratio_to_generate": round(rates[name] / base, 3) if base else None,
            "identical": one.identical,
            "sequences": one.conversations,
            "runs": one.runs,
        }
        for name, one in found.items()
    ]
