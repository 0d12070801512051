"""Running the bench: one kernel process with the fake engine, one process a framework, one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aios_evals
from aios_evals.adapters_bench.frameworks import FRAMEWORKS
from aios_kernel.client import Client, connect
from aios_kernel.config import Config, socket_of
from aios_kernel.errors import InvalidRequest
from aios_kernel.syscalls import KernelShutdown

LIMITS_US = {"llm": 1000.0, "tool": 300.0, "outside": 1.0}
"""What may be added at p50."""
_TIMEOUT_S = 280.0


@dataclass(slots=True)
class Outcome:
    """Rows, versions of what was measured, and what was left out."""

    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    versions: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])


def run(frameworks: Sequence[str], calls: int, metagpt: Path) -> Outcome:
    """Measure; a row has `{framework, call, road, calls, bare_*, inside_*, added_*, limit_us, met}`.

    Args:
        frameworks: names of `FRAMEWORKS`.
        calls: of each kind.
        metagpt: the interpreter of MetaGPT's environment; without it MetaGPT is left out, with a note.
    """
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="aios-", ignore_cleanup_errors=True) as home:
        config = Config(home=home, model="fake", embedder="hash", vectors="exact", grace_s=1.0)
        connection = connect(config, client="bench")
        try:
            for name in frameworks:
                _measure(name, calls, metagpt, config, outcome)
            Client(connection).call(KernelShutdown())
        finally:
            connection.close()
    return outcome


def names() -> tuple[str, ...]:
    """The frameworks that can be measured."""
    return tuple(FRAMEWORKS)


def _measure(name: str, calls: int, metagpt: Path, config: Config, outcome: Outcome) -> None:
    python = str(metagpt) if name == "metagpt" else sys.executable
    if name == "metagpt" and not metagpt.exists():
        outcome.notes.append(f"metagpt was left out: there is no {metagpt} (make metagpt)")
        return
    variables = {
        "AIOS_KERNEL": str(socket_of(config)),
        "AIOS_HOME": config.home,
        "PYTHONPATH": str(Path(aios_evals.__file__).parents[1]),
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AIOS_", "OPENAI_"))}
    done = subprocess.run(
        [python, "-W", "ignore", "-m", "aios_evals.adapters_bench.worker", name, str(calls)],
        env={**kept, **variables, "HOME": config.home}, cwd=config.home,
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise InvalidRequest(f"{name} could not be measured:\n{done.stderr[-2000:]}", fix="aios doctor")
    told = json.loads(done.stdout.splitlines()[-1])
    for row in told["rows"]:
        limit = LIMITS_US[row["call"]]
        outcome.rows.append({**row, "limit_us": limit, "met": row["added_p50_us"] <= limit})
    outcome.versions.update(told["versions"])
