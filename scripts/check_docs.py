"""Run the code blocks of the documents, each Python file in a process of its own, on the demo model.

A block is marked by the info string: ```python run``` is executed as a file of its own; ```bash run``` is executed
line by line with the environment's `aios` on the PATH; ```python file=NAME``` is a module that the document's other
blocks can import. Other blocks are only read. Every run has a fresh data directory.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(python|bash) run\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^```python file=(\w+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TIMEOUT_S = 300


def commands(kind: str, text: str, folder: Path) -> list[list[str]]:
    """What a block runs."""
    if kind == "bash":
        return [shlex.split(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    file = folder / "block.py"
    file.write_text(text)
    return [[sys.executable, str(file)]]


def run_block(name: str, kind: str, text: str, files: dict[str, str]) -> bool:
    """Run one block, with the document's files beside it; prints its output when it fails."""
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        for file, content in files.items():
            (Path(folder) / file).write_text(content)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"AIOS_HOME": f"{folder}/home", "AIOS_GRACE_S": "1", "PATH": path}
        for command in commands(kind, text, Path(folder)):
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
            if done.returncode:
                sys.stdout.write(f"{name}: {shlex.join(command)} failed\n{done.stdout}{done.stderr}\n")
                return False
    sys.stdout.write(f"{name}: ok\n")
    return True


def main() -> int:
    """Run the blocks of the README and of docs/, or of the documents that are named."""
    good = True
    documents = [Path(name).resolve() for name in sys.argv[1:]]
    for document in documents or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        read = document.read_text()
        for number, (kind, text) in enumerate(BLOCK.findall(read), 1):
            good &= run_block(f"{document.relative_to(ROOT)} block {number}", kind, text, dict(FILE.findall(read)))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
