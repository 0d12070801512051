"""Customer-service runs of tau-bench (airline): policy, dialogue, tool calls with their recorded results.

Source: sierra-research/tau-bench, historical trajectories, MIT. Expected as `tau_airline/trajectories.json.gz`.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aios_evals.workloads.trajectory import RecordedCall, Step, Trajectory, Turn, schema_of

FILE = "tau_airline/trajectories.json.gz"


def load(data: Path) -> list[Trajectory]:
    """Every recorded run that has at least one complete turn."""
    with gzip.open(data / FILE, "rt") as file:
        recorded: list[dict[str, Any]] = json.load(file)
    tools = _tools(recorded)
    runs = [_trajectory(number, run["traj"], tools) for number, run in enumerate(recorded)]
    return [run for run in runs if run.turns]


def _tools(recorded: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    samples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in recorded:
        for message in run["traj"]:
            for call in message.get("tool_calls") or ():
                samples[call["function"]["name"]].append(json.loads(call["function"]["arguments"]))
    return {name: schema_of(name, calls) for name, calls in sorted(samples.items())}


def _trajectory(number: int, messages: Sequence[Mapping[str, Any]], tools: dict[str, dict[str, Any]]) -> Trajectory:
    results = {m["tool_call_id"]: m["content"] or "" for m in messages if m["role"] == "tool"}
    turns: list[Turn] = []
    user, steps = "", list[Step]()
    for message in messages:
        if message["role"] == "user":
            user, steps = message["content"], []
        elif message["role"] == "assistant":
            steps.append(_step(message, results))
            if not steps[-1].calls:  # only complete turns are kept: a run may end in the middle of one
                turns.append(Turn(user, tuple(steps)))
                user, steps = "", []
    system = next((m["content"] for m in messages if m["role"] == "system"), "")
    return Trajectory(f"tau-{number}", system, tuple(turn for turn in turns if turn.user), tools)


def _step(message: Mapping[str, Any], results: Mapping[str, str]) -> Step:
    calls = tuple(
        RecordedCall(
            call["function"]["name"], json.loads(call["function"]["arguments"]), results.get(call["id"], "no result")
        )
        for call in message.get("tool_calls") or ()
    )
    return Step(message["content"] or "", calls)
