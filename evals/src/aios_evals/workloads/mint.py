"""Code, maths and question runs of MINT: each `<execute>` block becomes a call of a Python tool that really runs.

Source: xingyaoww/mint-bench, outputs, Apache-2.0. Expected as `mint/*.jsonl.gz` with `state.history`.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aios_evals.workloads.trajectory import RecordedCall, Step, Trajectory, Turn, schema_of

FOLDER = "mint"
PYTHON_TOOL = schema_of("python", [{"code": "print(1)"}])
_EXECUTE = re.compile(r"<execute>\s*(.*?)\s*</execute>", re.DOTALL)


def load(data: Path) -> list[Trajectory]:
    """Every recorded run, the subsets taking turns so that a few agents already mix the kinds of work."""
    subsets = [_subset(path) for path in sorted((data / FOLDER).glob("*.jsonl.gz"))]
    longest = max((len(subset) for subset in subsets), default=0)
    return [subset[n] for n in range(longest) for subset in subsets if n < len(subset) and subset[n].turns]


def _subset(path: Path) -> list[Trajectory]:
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    name = path.name.partition(".")[0]
    return [_trajectory(f"mint-{name}-{n}", row["state"]["history"]) for n, row in enumerate(rows)]


def _trajectory(name: str, history: Sequence[Mapping[str, Any]]) -> Trajectory:
    """A user message after an executed block is its observation: the tool's own result takes its place."""
    turns: list[Turn] = []
    user, steps = "", list[Step]()
    for message in history:
        if message["role"] == "user":
            if not (steps and steps[-1].calls):
                user, steps = message["content"], []
            continue
        steps.append(_step(message["content"]))
        if not steps[-1].calls:
            turns.append(Turn(user, tuple(steps)))
            user, steps = "", []
    return Trajectory(name, "", tuple(turn for turn in turns if turn.user), {"python": PYTHON_TOOL})


def _step(content: str) -> Step:
    blocks = _EXECUTE.findall(content)
    calls = tuple(RecordedCall("python", {"code": block}, None) for block in blocks)
    return Step(_EXECUTE.sub("", content).strip() if calls else content.strip(), calls)
