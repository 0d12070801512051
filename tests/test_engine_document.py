"""docs/engine.md, docs/experts.md and docs/gpu.md name tests and benches that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aios_evals.plugin import bench

ROOT = Path(__file__).resolve().parent.parent
TEXT = "".join((ROOT / "docs" / name).read_text() for name in ("engine.md", "experts.md"))
NAMED = TEXT + (ROOT / "docs" / "gpu.md").read_text()
TESTS = sorted(set(re.findall(r"`(\w+/test_\w+\.py)(?:::(\w+))?`", NAMED)))
BENCHES = sorted(set(re.findall(r"`aios bench (\w+)`", TEXT)))


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_a_named_test_exists(file: str, name: str) -> None:
    tree = ast.parse((ROOT / "kernel" / "tests" / file).read_text())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in found if name else any(each.startswith("test_") for each in found)


@pytest.mark.parametrize("name", BENCHES)
def test_a_named_bench_exists(name: str) -> None:
    assert CliRunner().invoke(bench, [name, "--help"]).exit_code == 0


def test_every_row_names_something() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.endswith("| held by |")]
    assert len(rows) > 30
    for row in rows:
        assert re.search(r"`\w+/test_\w+\.py|`aios bench ", row.rsplit("|", 2)[1]), row
