"""Fixtures for every test of the repository, and the rule for outside suites: what is not run is listed."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Generator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["aios_adapters.testing"]

if not Path("/dev/nvidiactl").exists():
    # Triton decides when it is imported, by whoever does that first, whether its kernels run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

LIST = Path(__file__).parent / "tests" / "outside" / "deselected.toml"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what the list names; refuse an entry that names nothing any more."""
    patterns = [entry["test"] for entry in tomllib.loads(LIST.read_text())["deselected"]]
    out = [item for item in items if any(fnmatchcase(item.nodeid, pattern) for pattern in patterns)]
    files = {item.nodeid.partition("::")[0] for item in items}
    if not any("::" in argument for argument in config.args):  # whole files were collected
        for pattern in patterns:
            of_its_file = any(fnmatchcase(file, pattern.partition("::")[0]) for file in files)
            if of_its_file and not any(fnmatchcase(item.nodeid, pattern) for item in out):
                raise pytest.UsageError(f'{LIST}: "{pattern}" fits no test; fix: delete the entry')
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test of an outside suite that skips itself is listed, or fails."""
    report = yield
    if report.skipped and item.get_closest_marker("outside") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skips itself ({report.longrepr}); fix: list it in {LIST} with its reason"
    return report
