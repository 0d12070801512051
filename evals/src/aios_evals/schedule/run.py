"""`aios bench schedule`: the cells of a comparison, side by side on the machine's cores."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from aios_evals.schedule.cells import OFF, OURS, SESSIONS, Cell, Outcome, policy_names, run_cell
from aios_evals.schedule.cost import GPUS, MODELS
from aios_evals.schedule.workload import PARTS, THINK_CAP_S, WINDOW
from aios_evals.schedule.workload import SESSIONS as FILE
from aios_kernel.errors import InvalidRequest, NotFound

_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
DEFAULT_POLICIES = ("engine_lru", "admission", OURS)
DEFAULT_PROGRAMS, FULL_PROGRAMS = "8,32,64", "8,16,32,64,128"
DEFAULT_HOST, FULL_HOST = "0,1M", "0,1M,2M,8M"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says; None: the default, or everything with `full`."""

    trace: Path | None = None
    programs: str | None = None
    pool: str = "900k"
    host: str | None = None
    policies: Sequence[str] | None = None
    gpu: str = "h200"
    model: str = "llama-3.1-8b"
    loop: str = "closed"
    sessions: int = SESSIONS
    think_cap_s: float = THINK_CAP_S
    part: str = "first"
    full: bool = False


def tokens(text: str) -> int:
    """A count such as `900k` or `2M`. Raises InvalidRequest for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text.strip())
    if not found:
        raise InvalidRequest(f'"{text}" is no number of tokens', fix="such as 900k or 2M")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def cells(asked: Asked) -> list[Cell]:
    """Every combination. Raises InvalidRequest for what is not known, and NotFound when the trace is not there."""
    trace = trace_folder(asked.trace)
    if asked.loop not in {"open", "closed"}:
        raise InvalidRequest(f'--loop "{asked.loop}" is not known', fix="open or closed")
    for kind, name, known in (("gpu", asked.gpu, GPUS), ("model", asked.model, MODELS)):
        if name not in known:
            raise InvalidRequest(f'--{kind} "{name}" is not known', fix=f"choose from: {', '.join(known)}")
    if asked.part not in PARTS:
        raise InvalidRequest(f'--part "{asked.part}" is not known', fix=" or ".join(PARTS))
    policies = _policies(asked)
    counts = (asked.programs or (FULL_PROGRAMS if asked.full else DEFAULT_PROGRAMS)).split(",")
    hosts = (asked.host or (FULL_HOST if asked.full else DEFAULT_HOST)).split(",")
    arrivals = trace.parent / "mooncake" / "conversation_trace.jsonl.gz" if asked.loop == "open" else None
    return [
        Cell(
            policy, tokens(count), tokens(asked.pool), tokens(host), trace, asked.gpu, asked.model, arrivals,
            asked.sessions, asked.think_cap_s, asked.part,
        )
        for count in counts
        for host in hosts
        for policy in policies
    ]  # fmt: skip


def ablations(asked: Asked) -> list[Cell]:
    """The program policy whole and with each mechanism off in turn, in every cell, behind the engine alone."""
    found: list[Cell] = []
    for cell in cells(replace(asked, policies=["engine_lru"])):
        found += [cell, *(replace(cell, policy=OURS, options=off, label=label) for label, off in OFF.items())]
    return found


def trace_folder(given: Path | None) -> Path:
    """The folder of the sessions: the argument, else below `AIOS_DATA`. Raises NotFound."""
    root = os.environ.get("AIOS_DATA")
    folder = given or (Path(root) / "agent_sessions" if root else None)
    if folder is None or not (folder / FILE).exists():
        raise NotFound(
            f"the recorded sessions ({FILE}) are not part of the project: callanjfox/kv-cache-tester (Apache-2.0)",
            fix="--trace DIR with the folder that holds them, or AIOS_DATA=DIR with agent_sessions/ below it",
        )
    return folder


def run(todo: Sequence[Cell], jobs: int | None = None) -> list[Outcome]:
    """Simulate all, in as many processes as there are cores; in the order asked for."""
    jobs = min(jobs or os.cpu_count() or 1, len(todo))
    if jobs <= 1:
        return [run_cell(cell) for cell in todo]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(run_cell, todo))


def notes(asked: Asked) -> list[str]:
    """How it was measured."""
    return [
        f"{asked.sessions} sessions (as many as programs if these are more), the {asked.part} of the file with a call"
        f" inside the window; a session ends before its first call whose prompt and answer exceed {WINDOW:,} tokens;"
        f" think times are capped at {asked.think_cap_s:g} s; no prefix is shared between sessions",
        "sub-agents run as children: from the end of the call before them; the parent's next call waits for them",
        "completion is from a program's start to its last answer; amplification is prefilled over necessary tokens",
        "wait is of a call, from its arrival to its first step; turnaround to its end",
        "jain: over each program's least time alone over its completion; efficiency: the lower bound over the makespan",
        f"simulated {asked.gpu} with {asked.model}, {asked.loop} loop",
    ]


def _policies(asked: Asked) -> list[str]:
    known = policy_names()
    chosen = [name for each in asked.policies or () for name in each.split(",")]
    for name in chosen:
        if name not in known:
            raise InvalidRequest(f'policy "{name}" is not known', fix=f"choose from: {', '.join(known)}")
    return chosen or (known if asked.full else [*DEFAULT_POLICIES])
