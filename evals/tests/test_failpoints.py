"""Every failpoint of the kernel's sources is in the list that the kills go through, and the other way round."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import aios_kernel
from aios_evals.reliability.points import DATABASES, POINTS
from aios_kernel import failpoints
from aios_kernel.failpoints import ENVIRONMENT, Fault

SOURCES = Path(aios_kernel.__file__).parent
OF_FILES = {
    f"{name}.{file}.{act}" for name in ("audit", *DATABASES) for file in ("db", "db-wal") for act in ("write", "sync")
}


def named_in(path: Path) -> set[str]:
    """The points of a file; a name made with an f-string stands for one of each database."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
            (name,) = node.args
            if isinstance(name, ast.Constant):
                found.add(name.value)
            else:
                assert isinstance(name, ast.JoinedStr)
                end = name.values[-1]
                assert isinstance(end, ast.Constant)
                every = ("audit", *DATABASES) if end.value == ".migrated" else DATABASES
                found |= {f"{database}{end.value}" for database in every}
    return found


def test_every_failpoint_of_the_sources_is_killed_at_and_no_other() -> None:
    in_sources = set().union(*(named_in(path) for path in SOURCES.rglob("*.py")))
    listed = [point.name for point in POINTS]
    assert len(listed) == len(set(listed))
    assert in_sources | OF_FILES == set(listed)


def test_the_databases_are_those_that_the_kernel_writes() -> None:
    named = {name for path in SOURCES.rglob("*.py") for name in re.findall(r'"(\w+)\.db"', path.read_text())}
    # `tools` has kills of its own: kernel/tests/tools/test_kills.py.
    assert named == {"audit", "tools", *DATABASES}


def test_points_are_nothing_without_the_variable() -> None:
    assert ENVIRONMENT not in os.environ
    assert failpoints.plan is None
    assert failpoints.failpoint("memory.inserted") is None
    assert "aios_kernel._fault_files" not in sys.modules


REACH = """
import sys
from aios_kernel.failpoints import failpoint
for number in range(6):
    try:
        failpoint("here")
        print(number, "passed")
    except (OSError, MemoryError) as error:
        print(number, type(error).__name__, getattr(error, "errno", None))
"""


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("ENOSPC", skip=4), ["0 passed", "1 passed", "2 passed", "3 passed", "4 OSError 28", "5 OSError 28"]),
        (Fault("EIO", skip=1, times=1), ["0 passed", "1 OSError 5", *(f"{n} passed" for n in range(2, 6))]),
        (Fault("memory", times=1), ["0 MemoryError None", *(f"{n} passed" for n in range(1, 6))]),
        (Fault("sleep", seconds=0.01), [f"{n} passed" for n in range(6)]),
        (Fault("kill", skip=2), ["0 passed", "1 passed"]),
    ],
)
def test_a_fault_comes_when_it_is_due(tmp_path: Path, fault: Fault, said: list[str]) -> None:
    plan = tmp_path / "plan.json"
    plan.write_bytes(msgspec.json.encode({"here": fault}))
    done = subprocess.run(
        [sys.executable, "-u", "-c", REACH],
        env={ENVIRONMENT: str(plan)},
        stdout=subprocess.PIPE,
        check=False,
        text=True,
    )
    assert done.stdout.splitlines() == said
    assert done.returncode == (-9 if fault.action == "kill" else 0)
