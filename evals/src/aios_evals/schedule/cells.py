"""One cell of the comparison: a policy with a number of programs, a pool and host memory; and its row."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aios_evals.schedule.baselines import EngineLru, OracleAdmission, OracleEviction, farthest
from aios_evals.schedule.cost import GPUS, MODELS, Cost, bound, critical_s
from aios_evals.schedule.simulator import Setup, Simulation
from aios_evals.schedule.state import Tally
from aios_evals.schedule.workload import THINK_CAP_S, Program, load_arrivals, load_sessions
from aios_kernel.errors import InvalidRequest
from aios_kernel.plugins import Plugins
from aios_kernel.scheduler.protocol import Options, Policy

SESSIONS = 120
OURS = "program"
BASELINES = ("engine_lru", "admission", "oracle_eviction", "oracle_admission")
ADMISSION: Options = {
    "order": "arrival",
    "hold": 1e9,
    "grow": 0.0,
    "preempt": False,
    "prefetch": False,
    "chunk": 8192,
    "backlog": 1 << 40,
}
"""Whole-program admission and nothing else: first come, first served; who is in stays in."""
OFF: Mapping[str, Options] = {
    "program": {},
    "no order (first come)": {"order": "arrival"},
    "least attained service": {"order": "service"},
    "no ageing": {"stretch": 1e6, "patience": 1e12},
    "no time-to-live": {"hold": 1e9},
    "no growth": {"grow": 0.0},
    "no chunk limit": {"chunk": 8192},
    "no backlog limit": {"backlog": 1 << 40},
    "no prefetch": {"prefetch": False},
    "no swapping": {"swap_speed": 0.0},
}
"""The program policy with each mechanism off in turn."""
Maker = Callable[[Simulation], Policy]


@dataclass(frozen=True, slots=True)
class Cell:
    """What to run. Counts are in tokens."""

    policy: str
    programs: int
    pool: int
    host: int
    trace: Path
    gpu: str = "h200"
    model: str = "llama-3.1-8b"
    arrivals: Path | None = None
    """Of an open loop."""
    sessions: int = SESSIONS
    think_cap_s: float = THINK_CAP_S
    part: str = "first"
    """Of the file: the `first` or the `last` sessions; the policy was chosen on the last."""
    options: Mapping[str, float | int | str | bool] = field(default_factory=dict[str, "float | int | str | bool"])
    label: str = ""
    """Name of the row when it is not the policy's."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A cell's row, and what the plots need beside it."""

    row: dict[str, Any]
    completion_s: list[float]
    timeline: list[tuple[float, int, int, int, int, int]]
    waited_s: list[float]


def policy_names() -> list[str]:
    """The engine alone, bare admission, the oracles, then the kernel's own by its registry."""
    return [*BASELINES, *sorted(Plugins().named("aios_kernel_policies"))]


def maker(name: str, options: Options) -> Maker:
    """A factory of a policy. Raises InvalidRequest for a name that is not known."""
    if name == "engine_lru":
        return EngineLru
    if name == "oracle_eviction":
        return OracleEviction
    factories = Plugins().named("aios_kernel_policies")
    if name == "oracle_admission":
        return lambda simulation: OracleAdmission(simulation, ADMISSION)
    if name == "admission":
        return lambda _: factories[OURS]({**ADMISSION, **options})
    if name not in factories:
        raise InvalidRequest(f'policy "{name}" is not known', fix=f"choose from: {', '.join(policy_names())}")
    return lambda _: factories[name](options)


def run_cell(cell: Cell) -> Outcome:
    """Simulate it; the same arguments give the same row."""
    programs = load_sessions(
        cell.trace, max(cell.sessions, cell.programs), think_cap_s=cell.think_cap_s, part=cell.part
    )
    cost = Cost(GPUS[cell.gpu], MODELS[cell.model])
    arrivals: Sequence[float] = ()
    if cell.arrivals is not None:
        alone = statistics.mean(critical_s(cost, program) for program in programs)
        arrivals = load_arrivals(cell.arrivals, len(programs), cell.programs / alone)
    simulation = Simulation(
        Setup(cost, cell.pool, cell.host),
        programs,
        maker(cell.policy, cell.options),
        slots=cell.programs,
        arrivals=arrivals,
        order=farthest if cell.policy == "oracle_eviction" else None,
    )
    tally = simulation.run()
    return Outcome(_row(cell, cost, programs, tally), [*tally.completion_s.values()], tally.timeline, tally.waited_s)


def _row(cell: Cell, cost: Cost, programs: Sequence[Program], tally: Tally) -> dict[str, Any]:
    ended = sorted(tally.completion_s.values())
    least = bound(cost, programs, None if cell.arrivals else cell.programs, Setup(cost, 0).max_batch)
    waited, turned = sorted(tally.waited_s), sorted(tally.turned_s)
    pace = [critical_s(cost, program) / tally.completion_s[program.name] for program in programs]
    return {
        "policy": cell.label or cell.policy,
        "programs": cell.programs,
        "pool": cell.pool,
        "host": cell.host,
        "hit_rate": 1 - tally.prefilled / tally.prompted,
        "amplification": tally.prefilled / tally.necessary,
        "mean_s": statistics.mean(ended),
        "p50_s": percentile(ended, 0.50),
        "p95_s": percentile(ended, 0.95),
        "p99_s": percentile(ended, 0.99),
        "wait_mean_s": statistics.mean(waited),
        "wait_p95_s": percentile(waited, 0.95),
        "turnaround_mean_s": statistics.mean(turned),
        "turnaround_p95_s": percentile(turned, 0.95),
        "makespan_s": tally.now_s,
        "idle": 1 - tally.busy_s / tally.now_s,
        "swap_tokens": tally.swapped,
        "jain": sum(pace) ** 2 / (len(pace) * sum(each**2 for each in pace)),
        "efficiency": least.makespan_s / tally.now_s,
    }


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of values in order, between the nearest two."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
