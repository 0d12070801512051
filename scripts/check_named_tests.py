"""Every test that a document names, `path/test_x.py::test_y` or a file alone, exists. Prints those that do not."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.compile(r"`((?:[\w.-]+/)*tests/[\w./-]+\.py)(?:::([\w:]+))?`")


def tests_in(path: Path) -> set[str]:
    """Names of a file's tests, those of classes as `Class::test`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + each.name for each in inner if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
    return found


def missing(document: Path) -> list[str]:
    """What a document names and is not there."""
    gone: list[str] = []
    for file, test in NAMED.findall(document.read_text()):
        path = ROOT / file
        if not path.exists() or (test and test not in tests_in(path)):
            gone.append(f"{document.relative_to(ROOT)}: {file}{'::' * bool(test)}{test}")
    return gone


def main() -> int:
    """Check the README and docs/, or the documents that are named."""
    documents = [Path(name).resolve() for name in sys.argv[1:]] or [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    gone = [line for document in documents for line in missing(document)]
    sys.stdout.write("".join(f"{line} does not exist\n" for line in gone) or "all named tests exist\n")
    return 1 if gone else 0


if __name__ == "__main__":
    sys.exit(main())
