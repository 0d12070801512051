"""Finding and picking workloads."""

from __future__ import annotations

import os
from pathlib import Path

from aios_evals.workloads import mint, tau
from aios_evals.workloads.trajectory import Trajectory
from aios_kernel.errors import NotFound

_LOADERS = {"tau": tau.load, "mint": mint.load}
_ORIGINALS = {
    "tau": "sierra-research/tau-bench (MIT), historical airline trajectories, as tau_airline/trajectories.json.gz",
    "mint": "xingyaoww/mint-bench (Apache-2.0), outputs, as mint/<subset>.jsonl.gz",
}
NAMES = tuple(_LOADERS)


def data_folder(given: Path | None) -> Path:
    """The data folder: the argument, else `AIOS_DATA`. Raises NotFound."""
    folder = given or (Path(value) if (value := os.environ.get("AIOS_DATA")) else None)
    if folder is None or not folder.is_dir():
        raise NotFound(
            "the recorded workloads are not part of the project: " + "; ".join(_ORIGINALS.values()),
            fix="--data DIR or AIOS_DATA=DIR, the folder that holds them",
        )
    return folder


def pick(name: str, folder: Path, agents: int, steps: int) -> list[Trajectory]:
    """`agents` runs of a workload, cut to about `steps` model calls each; always the same ones."""
    try:
        runs = _LOADERS[name](folder)
    except OSError as error:
        raise NotFound(f"workload {name} is not in {folder}: {error}", fix=f"get it: {_ORIGINALS[name]}") from error
    if not runs:
        raise NotFound(f"workload {name} has no runs in {folder}", fix=f"get it: {_ORIGINALS[name]}")
    return [runs[n % len(runs)].cut(steps) for n in range(agents)]
