"""docs/memory.md, docs/storage.md and docs/reliability.md name tests and benches that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aios_evals.plugin import bench

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "memory.md").read_text()
ALL = TEXT + "".join((ROOT / "docs" / name).read_text() for name in ("storage.md", "reliability.md"))
TESTS = sorted(set(re.findall(r"`((?:kernel/|evals/)?tests/[\w/]+\.py)(?:::(\w+))?`", ALL)))


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_a_named_test_exists(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in found if name else any(each.startswith("test_") for each in found)


def test_the_named_bench_exists() -> None:
    assert re.findall(r"`aios bench (\w+)`", TEXT) == ["memory"]
    assert CliRunner().invoke(bench, ["memory", "--help"]).exit_code == 0


def test_every_row_names_something() -> None:
    promises = TEXT.partition("| promise |")[2].splitlines()
    rows = [line for line in promises if line.startswith("| ")]
    assert len(rows) > 20
    for row in rows:
        assert re.search(r"`(kernel/)?tests/[\w/]+\.py|`aios bench ", row.rsplit("|", 2)[1]), row


def test_the_weights_are_those_of_the_code() -> None:
    from aios_kernel.memory.ranking import WEIGHTS

    rows = dict(re.findall(r"^\| (\w+) \| .* \| ([\d.]+) \|$", TEXT, re.MULTILINE))
    assert {name: float(weight) for name, weight in rows.items()} == WEIGHTS
