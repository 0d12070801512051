"""One case, all engines in turn: a warm-up each, then the best of several rounds in which everyone runs once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aios_evals.engine_bench.case import Case
from aios_evals.engine_bench.exact import identical
from aios_evals.engine_bench.peers import ORACLE, Engine
from aios_evals.engine_bench.worker import Worker, WorkerFailed

ROUNDS = 3
BUDGET_S = 3.0
"""An engine that has run a case for this long runs no further round of it; so slow cases are measured once or twice."""
_WARM_UP = -1
_WARM_TOKENS = 1024


@dataclass(slots=True)
class Measured:
    """What one engine did in a case.

    Attributes:
        conversations: that it ran.
        cpu_s: of its best run by CPU time.
        wall_s: of its best run by the clock.
        runs: how many there were, the warm-up not counted.
        identical: share of conversations with the oracle's tokens; None where that was not asked.
    """

    conversations: int
    cpu_s: float = float("inf")
    wall_s: float = float("inf")
    spent_s: float = 0.0
    runs: int = 0
    identical: float | None = None
    histories: list[list[int]] = field(default_factory=list[list[int]])

    def add(self, run: Mapping[str, Any]) -> None:
        """Take in one run."""
        self.cpu_s = min(self.cpu_s, run["cpu_s"])
        self.wall_s = min(self.wall_s, run["wall_s"])
        self.spent_s += run["wall_s"]
        self.runs += 1
        self.histories = self.histories or run["histories"]


def measure(
    case: Case, workers: Mapping[str, tuple[Engine, Worker]], vocab: int, failed: Callable[[str, WorkerFailed], None]
) -> dict[str, Measured]:
    """Run a case on every worker; `failed` hears of those that could not, which are left out.

    Every round has prompts of its own (the same for all engines), so that no prefix cache knows them.
    """
    found = {name: Measured(engine.conversations(case.workload, case.batch)) for name, (engine, _) in workers.items()}
    for number in (_WARM_UP, *range(ROUNDS)):
        for name, (_, worker) in workers.items():
            if name not in found or found[name].spent_s >= BUDGET_S:
                continue
            try:
                _run(case, number, worker, found[name], vocab)
            except WorkerFailed as error:
                del found[name]
                failed(name, error)
    return found


def compare(found: Mapping[str, Measured], oracle: Worker) -> None:
    """Say of every engine how much of the oracle's first round it said. Raises WorkerFailed."""
    if ORACLE in found:
        for measured in found.values():
            measured.identical = identical(measured.histories, found[ORACLE].histories, oracle.margin)


def _run(case: Case, number: int, worker: Worker, measured: Measured, vocab: int) -> None:
    turns = case.turns(vocab, number, measured.conversations)
    if number != _WARM_UP:
        measured.add(worker.run(turns, case.n_tokens))
    elif case.workload == "prefill":
        worker.run([[tokens[-_WARM_TOKENS:] for tokens in turn] for turn in turns], 1)
    else:  # the same batch, but short: a full run would cost as much as a measured one
        worker.run([[tokens[-16:] for tokens in turn] for turn in turns[:2]], 4)
