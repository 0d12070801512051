"""The tests that docs/adapters.md names exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.compile(r"`((?:adapters|tests|aios_adapters)/[\w/]+\.py)::([\w:]+)`")


@functools.cache
def named_in(path: str) -> set[str]:
    """Names of a file's tests, those of classes as `Class::test`."""
    found: set[str] = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        inner = node.body if isinstance(node, ast.ClassDef) else []
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        for each in inner or [node]:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name.startswith("test"):
                found.add(prefix + each.name)
    return found


def test_every_claim_names_tests_that_exist() -> None:
    claims = [line for line in (ROOT / "docs" / "adapters.md").read_text().splitlines() if "::test_" in line]
    assert len(claims) > 50
    for line in claims:
        named = NAMED.findall(line)
        assert named, line
        assert line.count("::test_") == len(named), line
        for path, test in named:
            assert test in named_in(path), f"{path} has no {test}"
