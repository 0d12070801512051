"""docs/security.md has a row for every item of both lists, and every test that it names exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()


def test_every_named_test_exists() -> None:
    assert TEXT.count("::test_") > 40
    checker = [sys.executable, str(ROOT / "scripts" / "check_named_tests.py")]
    done = subprocess.run(checker, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "all named tests exist\n")


def test_a_name_that_is_none_is_found(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from check_named_tests import NAMED
    finally:
        sys.path.pop(0)
    assert NAMED.findall("`tests/test_x.py::test_y`, `kernel/tests/a/test_b.py`") == [
        ("tests/test_x.py", "test_y"), ("kernel/tests/a/test_b.py", ""),
    ]  # fmt: skip


def test_every_item_of_the_lists_has_a_row_with_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if re.match(r"\| (LLM|ASI)\d\d", line)]
    items = {item for row in rows for item in re.findall(r"(?:LLM|ASI)\d\d", row.split("|")[1])}
    assert items == {f"{each}{number:02d}" for each in ("LLM", "ASI") for number in range(1, 11)}
    assert all("tests/" in row for row in rows)
