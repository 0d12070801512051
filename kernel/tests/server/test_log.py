"""The log of a kernel process stays small, and catches what libraries write to standard error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WRITER = """
import logging, os, sys
from pathlib import Path
from aios_kernel.server.log import KernelLog

logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[KernelLog(Path(sys.argv[1]), 1000)])
for number in range(200):
    logging.info("line %d %s", number, "x" * 40)
    os.write(2, b"raw %d\\n" % number)
"""


def test_it_is_turned_over_with_standard_error_in_it(tmp_path: Path) -> None:
    log = tmp_path / "kernel.log"
    with log.open("ab") as output:
        subprocess.run([sys.executable, "-c", WRITER, str(log)], stdout=output, stderr=output, check=True, timeout=60)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["kernel.log", "kernel.log.1", "kernel.log.2", "kernel.log.3"]
    assert all(path.stat().st_size < 2000 for path in tmp_path.iterdir())
    last = log.read_text().splitlines()
    assert last[-1] == "raw 199"
    assert last[-2].startswith("line 199 ")
