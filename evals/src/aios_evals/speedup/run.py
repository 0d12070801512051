"""Running the comparison: every framework, workload and mode, the same agents in each."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios_evals import replay_model
from aios_evals.baseline.generate import Choices
from aios_evals.speedup.frameworks import walks
from aios_evals.speedup.modes import Mode, kernel_mode, server_mode
from aios_evals.speedup.walk import Endpoint, Tools, Walk
from aios_evals.workloads.load import pick
from aios_evals.workloads.trajectory import Trajectory
from aios_kernel.config import Config
from aios_kernel.errors import AiosError

TIE_MARGIN = 1e-3
"""The oracle's two best logits nearer than this are a tie: either is right (engine contract)."""
QUANTUM = 8
"""Round robin's time slice in tokens, short enough that recorded answers are preempted in their middle."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare. `slots` are the calls that round robin lets run at once."""

    data: Path
    workloads: Sequence[str]
    frameworks: Sequence[str]
    agents: int
    steps: int
    tool_delay_s: float
    models: Path
    modes: Sequence[str]
    server: str | None = None
    slots: int = 4


MODES = ("generate_lock", "kernel_fifo", "kernel_round_robin")


def run(plan: Plan) -> list[dict[str, Any]]:
    """One row a framework, workload and mode; `ratio` and `identical` are against `generate_lock`."""
    return asyncio.run(_run(plan))


async def _run(plan: Plan) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for workload in plan.workloads:
        runs = pick(workload, plan.data, plan.agents, plan.steps)
        model = replay_model.ensure(plan.models, runs)
        for framework in plan.frameworks:
            rows.extend(await _compare(plan, framework, workload, runs, model))
    return rows


async def _compare(
    plan: Plan, framework: str, workload: str, runs: Sequence[Trajectory], model: Path
) -> list[dict[str, Any]]:
    named = {f"{framework}-{number}": run for number, run in enumerate(runs)}
    with tempfile.TemporaryDirectory(prefix="aios-", ignore_cleanup_errors=True) as home:
        base = Config(home=home, model=str(model), embedder="hash", vectors="exact", grace_s=1.0)
        rows: list[dict[str, Any]] = []
        oracle: dict[str, dict[int, Choices]] = {}
        for name in [*plan.modes, *(["server"] if plan.server else [])]:
            opening = _open(plan, name, base, model, named)
            measured, choices = await _measure(plan, walks()[framework], named, opening)
            oracle = choices if name == "generate_lock" else oracle
            row: dict[str, Any] = {
                "framework": framework,
                "workload": workload,
                "agents": len(named),
                "mode": name,
            } | measured
            row["ratio"] = (rows[0] if rows else row)["makespan_s"] / row["makespan_s"] if oracle else None
            row["identical"] = _agreement(oracle, choices) if oracle and name != "server" else None
            rows.append(row)
    return rows


def _open(
    plan: Plan, mode: str, base: Config, model: Path, runs: Mapping[str, Trajectory]
) -> AbstractAsyncContextManager[Mode]:
    if mode == "generate_lock":
        return server_mode(model, runs)
    if mode == "server":
        return server_mode(model, runs, forward=plan.server)
    if mode == "kernel_fifo":
        return kernel_mode(_policy(base, "fifo", {}), runs)
    slices = {"quantum": QUANTUM, "slots": plan.slots, "always_swap": True}
    return kernel_mode(_policy(base, "round_robin", slices), runs)


def _policy(config: Config, name: str, options: Mapping[str, float | int | str | bool]) -> Config:
    import msgspec

    return msgspec.structs.replace(config, home=f"{config.home}/{name}", policy=name, policy_options=dict(options))


async def _measure(
    plan: Plan, walk: Walk, runs: Mapping[str, Trajectory], opening: AbstractAsyncContextManager[Mode]
) -> tuple[dict[str, Any], dict[str, dict[int, Choices]]]:
    """Let all agents of a mode run at once; gives its figures and the model's own choices."""
    async with opening as mode:
        began = time.perf_counter()
        ended = await asyncio.gather(*(_agent(plan, walk, name, run, mode) for name, run in runs.items()))
        completion = sorted(moment - began for moment in ended)
        usage = await mode.usage()
        choices = {name: await mode.choices(name) for name in runs}
    return {
        "makespan_s": completion[-1],
        "mean_s": statistics.fmean(completion),
        "p95_s": completion[min(len(completion) - 1, int(0.95 * len(completion)))],
        "waiting_s": usage.waiting_s,
        "tokens_computed": usage.tokens_computed,
        "tokens_cached": usage.tokens_cached,
        "snapshots": usage.snapshots,
    }, choices


async def _agent(plan: Plan, walk: Walk, name: str, run: Trajectory, mode: Mode) -> float:
    """One agent's whole walk; gives when it ended. A walk that left the recorded path is an error, not a figure."""
    tools = Tools(run, plan.tool_delay_s)

    async def agent(endpoint: Endpoint | None) -> list[str]:
        return await walk(run, tools, endpoint)

    texts = await mode.wrap(name, agent)()
    ended = time.perf_counter()
    recorded = [turn.steps[-1].text for turn in run.turns]
    if [text.strip() for text in texts] != [text.strip() for text in recorded] or tools.ran != tools.recorded:
        raise AiosError(
            f"{name} left the recorded path of {run.id}: {tools.ran} of {tools.recorded} tool calls",
            fix="report this: the framework's loop changed",
        )
    return ended


def _agreement(oracle: Mapping[str, Mapping[int, Choices]], ours: Mapping[str, Mapping[int, Choices]]) -> float:
    """The share of positions at which the greedy choice is the oracle's, ties aside."""
    same = total = 0
    for agent, answers in oracle.items():
        for number, choices in answers.items():
            found = ours[agent].get(number, Choices()).argmax
            for position, (token, margin) in enumerate(zip(choices.argmax, choices.margin, strict=True)):
                if margin > TIE_MARGIN:
                    total += 1
                    same += position < len(found) and found[position] == token
    return same / total if total else 1.0
