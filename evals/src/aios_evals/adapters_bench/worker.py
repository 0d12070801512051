"""One framework in a process of its own: `python -m aios_evals.adapters_bench.worker FRAMEWORK CALLS`, JSON out."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import sys
from typing import Any

from aios_adapters import host
from aios_evals.adapters_bench.frameworks import FRAMEWORKS
from aios_evals.adapters_bench.measure import measure, outside


def main() -> None:
    """Measure and print one JSON object: rows, and the versions of what was measured."""
    name, calls = sys.argv[1], int(sys.argv[2])
    print(json.dumps(asyncio.run(_rows(name, calls))))


async def _rows(name: str, calls: int) -> dict[str, Any]:
    cases, hooks = FRAMEWORKS[name]()
    host().check()
    rows = [await measure(case, calls) for case in cases]
    rows += [outside(hooked) for hooked in hooks]
    tested = host().installed[name].adapter.tested
    versions = {distribution: importlib.metadata.version(distribution) for distribution in tested}
    return {"rows": [{"framework": name, **row} for row in rows], "versions": versions}


if __name__ == "__main__":
    main()
