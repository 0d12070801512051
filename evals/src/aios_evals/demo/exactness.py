"""`aios bench exactness`: do the demo agents say the same with and without the kernel, with and without snapshots?"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from aios_evals.demo.jobs import jobs
from aios_evals.demo.run import Run, with_kernel, without_kernel

SLICES = {"quantum": 4, "slots": 2, "always_swap": True}
"""Two calls at a time, four tokens each: every answer is snapshotted and restored many times in its middle."""


def run(each: int) -> list[dict[str, Any]]:
    """One row a policy: free-running greedy answers, compared with those of transformers `generate`."""
    return asyncio.run(_run(each))


async def _run(each: int) -> list[dict[str, Any]]:
    work = jobs(each)
    oracle = await without_kernel(work)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="aios-", ignore_cleanup_errors=True) as folder:
        for policy, options in (("fifo", {}), ("round_robin", {}), ("round_robin", SLICES)):
            flags = {"policy": policy, "policy_options": options}
            ours, view = await with_kernel(work, Path(folder) / "trace.json", flags)
            same, total = agreement(ours, oracle)
            rows.append(
                {
                    "policy": policy,
                    "snapshots": view.status.snapshots,
                    "agents": len(work),
                    "answers": total,
                    "same": same,
                    "identical": same / total,
                    "makespan_s": ours.seconds,
                    "generate_s": oracle.seconds,
                }
            )
    return rows


def agreement(ours: Run, theirs: Run) -> tuple[int, int]:
    """How many answers are the same, of how many."""
    pairs = [pair for name, said in ours.answers.items() for pair in zip(said, theirs.answers[name], strict=True)]
    return sum(one == other for one, other in pairs), len(pairs)
