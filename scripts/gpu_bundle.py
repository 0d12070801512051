"""Everything that a bare GPU machine lacks to run `python -m aios_evals gpu`, in one folder with one command.

The machine has Python 3.12, torch, transformers and triton, and no network. The folder holds our wheels, the small
libraries they need (for CPython 3.12 on x86-64 Linux), the recorded sessions if they are at hand, and `run.sh`.

    python scripts/gpu_bundle.py runs/gpu-bundle [--data DIR]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = ("kernel", ".", "evals")
LIBRARIES = (
    "msgspec>=0.19,<0.23", "pluggy>=1.5,<2", "wrapt>=1.15,<3",
    "rich>=13.6,<16", "markdown-it-py", "mdurl", "pygments",
    "matplotlib>=3.9,<4", "contourpy", "cycler", "fonttools", "kiwisolver", "packaging", "pillow", "pyparsing",
    "python-dateutil", "six",
)  # fmt: skip
"""Torch and transformers bring numpy, jinja2 and safetensors. The second half is for the picture."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
RECORDED = Path("agent_sessions") / "sessions.jsonl.gz"
MOST_BYTES = 64 << 20
RUN = """\
#!/bin/sh
# Installs what is beside this file into an environment of its own that sees the machine's torch, and runs the eval.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
[ -x "$here/venv/bin/python" ] || "$python" -m venv --system-site-packages "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps "$here"/wheels/*.whl
[ -d "$here/data" ] && export AIOS_DATA="$here/data"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$here/venv/bin/python" -m aios_evals gpu --out "$here/results" "$@"
"""


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("AIOS_DATA"), help="of the recordings (AIOS_DATA)")
    parser.add_argument("--python", default="3.12", help="the machine's Python")
    asked = parser.parse_args()
    folder: Path = asked.folder
    wheels = folder / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    _pip("wheel", "--no-deps", "--wheel-dir", str(wheels), *(str(ROOT / name) for name in DISTRIBUTIONS))
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    _pip(
        "download", "--no-deps", "--only-binary", ":all:", "--python-version", asked.python, "--implementation", "cp",
        *platforms, "--dest", str(wheels), *LIBRARIES,
    )  # fmt: skip
    if asked.data is not None and (Path(asked.data) / RECORDED).is_file():
        (folder / "data" / RECORDED.parent).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(asked.data) / RECORDED, folder / "data" / RECORDED)
    run = folder / "run.sh"
    run.write_text(RUN)
    run.chmod(0o755)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        sys.exit(f"{folder} has {size >> 20} MiB, more than {MOST_BYTES >> 20}; fix: leave --data out")
    print(f"{folder}: {size / (1 << 20):.1f} MiB; on the GPU machine: sh {folder.name}/run.sh")  # noqa: T201


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], check=True)


if __name__ == "__main__":
    main()
