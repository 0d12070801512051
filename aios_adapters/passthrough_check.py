"""Run a test suite twice, without us and through the kernel, and say where the outcomes differ.

    python -m aios_adapters.passthrough_check [--json FILE] PYTEST-ARGUMENTS...

Each run is a pytest of its own in the current folder; the second has `AIOS_KERNEL=passthrough` and the plugin
`aios_adapters.pytest_passthrough`. The exit status is 0 when every test came out the same and some calls went through.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from aios_kernel.errors import InvalidRequest

_PLUGIN = "aios_adapters.pytest_passthrough"
_KINDS = {"failure": "failed", "error": "error", "skipped": "skipped"}
_ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How the tests of one run came out, by their names; `calls` went through the kernel, by syscall."""

    tests: dict[str, str]
    calls: dict[str, int] = field(default_factory=dict[str, int])

    def __str__(self) -> str:
        """Such as `3 failed, 250 passed`."""
        counts = Counter(self.tests.values())
        return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "no tests"


def check(arguments: Sequence[str]) -> tuple[Outcomes, Outcomes]:
    """The outcomes without us, and through the kernel. Raises InvalidRequest when pytest itself could not run."""
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AIOS_")}
        without = Outcomes(_run(Path(folder) / "without.xml", arguments, clean))
        report = Path(folder) / "calls.json"
        plugin = ["-p", _PLUGIN, "--aios-report", str(report), *arguments]
        through = _run(Path(folder) / "through.xml", plugin, clean | {"AIOS_KERNEL": "passthrough"})
        calls = json.loads(report.read_text())["syscalls"] if report.exists() else {}
        return without, Outcomes(through, calls)


def differences(without: Outcomes, through: Outcomes) -> dict[str, tuple[str, str]]:
    """The tests that came out differently, with both outcomes."""
    pairs = {
        name: (without.tests.get(name, _ABSENT), through.tests.get(name, _ABSENT))
        for name in [*without.tests, *(name for name in through.tests if name not in without.tests)]
    }
    return {name: (one, other) for name, (one, other) in pairs.items() if one != other}


def _run(report: Path, arguments: Sequence[str], environment: dict[str, str]) -> dict[str, str]:
    command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not report.exists():  # 1: some tests failed
        raise InvalidRequest(
            f"pytest ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}",
            fix=f"try it alone: {' '.join(command[1:])}",
        )
    return _outcomes(report)


def _outcomes(report: Path) -> dict[str, str]:
    """By class and name; a second test of one name is counted."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.attrib['classname']}::{case.attrib['name']}"
        number = sum(other == name or other.startswith(f"{name} #") for other in found)
        kinds = [_KINDS[part.tag] for part in case if part.tag in _KINDS]
        found[f"{name} #{number + 1}" if number else name] = "+".join(kinds) or "passed"
    return found


def _report(without: Outcomes, through: Outcomes) -> dict[str, Any]:
    return {
        "without": dict(Counter(without.tests.values())),
        "through": dict(Counter(through.tests.values())),
        "calls": through.calls,
        "differences": differences(without, through),
    }


def main() -> int:
    """The command; gives the exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there")
    options, arguments = parser.parse_known_args()
    try:
        without, through = check(arguments)
    except InvalidRequest as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    differing = differences(without, through)
    lines = [
        f"without us:         {without}",
        f"through the kernel: {through}",
        f"calls:              {sum(through.calls.values())} ({_listed(through.calls)})",
        f"different outcomes: {len(differing)}",
        *(f"  {name}: {one} without us, {other} through the kernel" for name, (one, other) in differing.items()),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps(_report(without, through), indent=1) + "\n")
    return 0 if not differing and through.calls else 1


def _listed(calls: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(calls.items())) or "none"


if __name__ == "__main__":
    sys.exit(main())
