"""Run the frameworks' own test suites without us and through the kernel, and say where their outcomes differ.

    python scripts/framework_suites.py [SUITE ...] [--report FILE]      (make framework-suites)

Suites are those of the source distributions of the installed versions, listed in tests/outside/suites.toml; what their
tests import is in the environment that this runs in (`.venv-suites`). A test that fails without us, for want of a
service or a key, must fail through the kernel too. Status 1 if any outcome differs, or a suite does not run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aios_evals.report import report, show

ROOT = Path(__file__).resolve().parent.parent
SUITES: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "tests" / "outside" / "suites.toml").read_text())
DOWNLOAD_S, RUN_S = 600, 3600
# Collection errors (a service's client that is not installed) are outcomes like others.
ALWAYS = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]


def main() -> int:
    """Fetch, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(SUITES)}; default all")
    parser.add_argument("--report", type=Path, default=ROOT / "runs" / "passthrough.json")
    asked = parser.parse_args()
    if unknown := set(asked.suites) - set(SUITES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    found = [outcome(name, SUITES[name]) for name in asked.suites or SUITES]
    rows = merged(asked.report, found)
    made = report("passthrough", rows) | {"command": "make framework-suites"}
    asked.report.parent.mkdir(parents=True, exist_ok=True)
    asked.report.write_text(json.dumps(made, indent=2) + "\n")
    show("passthrough", [{key: value for key, value in row.items() if key != "calls"} for row in rows])
    return int(any(row["error"] or row["different"] for row in found))


def merged(path: Path, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows, and those of suites that were not asked for from an earlier report."""
    earlier = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {row["suite"]: row for row in (*earlier, *found)}
    return [rows[name] for name in SUITES if name in rows]


def outcome(name: str, suite: dict[str, Any]) -> dict[str, Any]:
    """The row of one suite."""
    row: dict[str, Any] = {"suite": name, "version": version(name)}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        try:
            found = compared(Path(folder), fetched(name, row["version"], Path(folder)), suite)
        except (RuntimeError, subprocess.SubprocessError) as error:
            found = {"error": str(error)}
    return {**row, "seconds": round(time.monotonic() - began), **EMPTY, **found}


EMPTY: dict[str, Any] = {"without": "", "through": "", "calls": {}, "different": 0, "differing": [], "error": ""}


def fetched(name: str, of: str, folder: Path) -> Path:
    """The unpacked source distribution."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    run([sys.executable, "-m", "pip", "download", *options, f"{name}=={of}"], DOWNLOAD_S)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def compared(folder: Path, sources: Path, suite: dict[str, Any]) -> dict[str, Any]:
    """What `aios_adapters.passthrough_check` says of the suite."""
    figures = folder / "figures.json"
    arguments = [suite["tests"], *suite.get("arguments", []), *ALWAYS]
    command = [sys.executable, "-m", "aios_adapters.passthrough_check", "--json", str(figures), *arguments]
    done = run(command, RUN_S, cwd=sources, env=os.environ | suite.get("variables", {}), expected=(0, 1))
    if not figures.exists():
        raise RuntimeError(done.stderr[-1000:])
    found = json.loads(figures.read_text())
    return {
        "without": counted(found["without"]),
        "through": counted(found["through"]),
        "calls": found["calls"],
        "different": len(found["differences"]),
        "differing": [f"{test}: {one} -> {other}" for test, (one, other) in found["differences"].items()],
    }


def counted(outcomes: dict[str, int]) -> str:
    """Such as `2 failed, 286 passed`."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(outcomes.items()))


def run(command: list[str], limit_s: float, expected: tuple[int, ...] = (0,), **options: Any) -> Any:
    """A finished process. Raises RuntimeError with the end of what it said if its status is not expected."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s, **options)
    if done.returncode not in expected:
        said = (done.stdout + done.stderr)[-1000:]
        raise RuntimeError(f"{' '.join(command[:6])} ended with {done.returncode}: {said}")
    return done


if __name__ == "__main__":
    sys.exit(main())
