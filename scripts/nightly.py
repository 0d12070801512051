"""Run the adapters' tests against the newest releases of their frameworks, each in an environment of its own.

    python scripts/nightly.py [FRAMEWORK ...] [--report FILE]

Environments lie below `.venv-nightly/`. The report says, for each framework, which versions came, whether they are in
the tested range (`aios_adapters/versions.py`), which hooks a release has broken, by name, and how many tests passed.
Status 1 if anything failed inside the range; a failure beyond it is news, not a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENVS = ROOT / ".venv-nightly"
# The OpenAI adapter lets clients be built without a key; the tests of the others rely on it.
BESIDE = {"langchain": ["openai"], "autogen": ["openai"], "llamaindex": ["openai"]}
EXTRAS = {"autogen-ext": "autogen-ext[openai]"}
TESTS = ["pytest>=8,<10", "pytest-asyncio>=1.0,<2", "pytest-timeout>=2.3,<3", "hypothesis>=6.100,<7", "httpx>=0.28,<1"]
# What only the outside suites need, or the MiniLM model, is left to `make test`.
IGNORED = ["test_standard.py", "test_conformance.py"]
INSTALL_S, RUN_S = 900, 900


@dataclass
class Outcome:
    """How one framework did."""

    framework: str
    versions: dict[str, str] = field(default_factory=dict)
    inside: bool = False
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Hooks that do not fit the versions that came: module, symbol and what is wrong."""
    error: str = ""


def main() -> int:
    """Install, run, report."""
    from aios_adapters.versions import TESTED

    names = [name for name in TESTED if name != "metagpt"]  # frozen at its tested version: `make test-metagpt`
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frameworks", nargs="*", help=f"of {', '.join(names)}; default all")
    parser.add_argument("--report", type=Path, default=ROOT / "runs" / "nightly.json")
    asked = parser.parse_args()
    if unknown := set(asked.frameworks) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    outcomes = [measured(name, list(TESTED[name])) for name in asked.frameworks or names]
    asked.report.parent.mkdir(parents=True, exist_ok=True)
    asked.report.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    for outcome in outcomes:
        where = "inside" if outcome.inside else "BEYOND"
        found = ", ".join(f"{name} {version}" for name, version in outcome.versions.items())
        sys.stdout.write(
            f"{outcome.framework}: {found or 'not installed'} ({where} the tested range): {outcome.passed} passed, "
            f"{outcome.failed} failed, {outcome.skipped} skipped {outcome.error}\n"
        )
        sys.stdout.writelines(f"  broken hook: {hook}\n" for hook in outcome.broken)
        sys.stdout.writelines(f"  failed: {failure}\n" for failure in outcome.failures)
    return int(any(outcome.inside and (outcome.failed or outcome.broken or outcome.error) for outcome in outcomes))


def measured(name: str, distributions: list[str]) -> Outcome:
    """The outcome for one framework."""
    from aios_adapters.plugins import in_range
    from aios_adapters.versions import TESTED

    outcome = Outcome(name)
    try:
        python = installed(name, distributions)
        outcome.versions = versions(python, distributions)
        outcome.inside = all(in_range(outcome.versions[each], TESTED[name][each]) for each in distributions)
        outcome.broken = broken_hooks(python, name)
        run_tests(name, python, outcome)
    except (subprocess.SubprocessError, OSError, KeyError, ElementTree.ParseError) as error:
        outcome.error = f"{type(error).__name__}: {getattr(error, 'stderr', '') or error}"[-2000:]
    return outcome


def installed(name: str, distributions: list[str]) -> Path:
    """An interpreter with the newest releases beside the adapter."""
    folder = VENVS / name
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=INSTALL_S)
    ours = ["kernel[server]", ".", *(f"adapters/{each}" for each in [name, *BESIDE.get(name, [])])]
    editable = [
        part for path in ours for part in ("-e", str(ROOT / path) if path != "kernel[server]" else f"{ROOT}/{path}")
    ]
    newest = [EXTRAS.get(each, each) for each in distributions]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--upgrade", "--upgrade-strategy", "eager"]
    subprocess.run(
        [*pip, *TESTS, *newest, *editable], check=True, timeout=INSTALL_S, capture_output=True, text=True,
    )  # fmt: skip
    return python


def versions(python: Path, distributions: list[str]) -> dict[str, str]:
    """What is installed there."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run(
        [str(python), "-c", code, *distributions], check=True, capture_output=True, text=True, timeout=60
    )
    return json.loads(done.stdout)


HOOKS = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
import aios_adapters
state, broken = aios_adapters.host().installed[sys.argv[1]], []
for module in state.adapter.hooks:
    try:
        importlib.import_module(module)
    except ImportError as error:
        if module not in state.adapter.optional:
            broken.append(f"{module}: {error}")
    if state.error is not None:
        broken.append(f"{module}: {state.error.message}")
        state.error = None
print(json.dumps(broken))
"""


def broken_hooks(python: Path, name: str) -> list[str]:
    """What an adapter cannot hook in an environment, module by module."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AIOS_")}
    done = subprocess.run(
        [str(python), "-c", HOOKS, name], env=kept, check=True, capture_output=True, text=True, timeout=120
    )
    return json.loads(done.stdout.splitlines()[-1])


def run_tests(name: str, python: Path, outcome: Outcome) -> None:
    """Fill in how the adapter's tests went."""
    folder = ROOT / "adapters" / name / "tests"
    result = VENVS / f"{name}.xml"
    result.unlink(missing_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AIOS_")}
    subprocess.run(
        [
            str(python), "-m", "pytest", str(folder), "-m", "not slow", "--junitxml", str(result), "--rootdir",
            str(ROOT), "-W", "default", "-p", "no:cacheprovider", *(f"--ignore={folder / each}" for each in IGNORED),
        ],
        cwd=ROOT, env=kept, check=False, timeout=RUN_S, capture_output=True, text=True,
    )  # fmt: skip
    for case in ElementTree.parse(result).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
            outcome.failures.append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is not None:
            outcome.skipped += 1
        else:
            outcome.passed += 1


if __name__ == "__main__":
    sys.exit(main())
