"""`python -m aios_evals gpu`: what has to run on a machine that has no command line of ours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run an eval; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m aios_evals", description=__doc__)
    evals = parser.add_subparsers(dest="eval", required=True)
    gpu = evals.add_parser("gpu", help="the engine on one GPU, within ten minutes; docs/gpu.md")
    gpu.add_argument("--tiny", action="store_true", help="every section on small shapes, on the CPU too")
    gpu.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of gpu.json, gpu.txt and gpu.png")
    gpu.add_argument("--budget", type=float, default=570.0, help="seconds for everything")
    gpu.add_argument("--device", default="auto", help="auto, cuda, cuda:N or cpu")
    gpu.add_argument("--model", action="append", help="only these shapes")
    gpu.add_argument("--section", action="append", help="only these sections")
    gpu.add_argument("--data", type=Path, help="folder of the recorded workloads (AIOS_DATA)")
    gpu.add_argument("--json", action="store_true", help="print JSON instead of tables")
    asked = parser.parse_args(arguments)
    from aios_evals.gpu.run import Asked, run
    from aios_kernel.errors import AiosError

    try:
        failed = run(
            Asked(asked.out, asked.budget, asked.device, asked.tiny, asked.model, asked.section, asked.data, asked.json)
        )
    except AiosError as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
