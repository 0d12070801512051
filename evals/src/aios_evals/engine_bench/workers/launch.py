"""Start a worker: `PYTHON -P launch.py MODULE`, where PYTHON is the interpreter of any environment.

The package is appended to the module path, so that the environment's own packages come first and only what is not
there (this package) is found beside us.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[3]))
    package = "aios_evals.engine_bench.workers"
    loop = importlib.import_module(f"{package}.loop")
    loop.serve(importlib.import_module(f"{package}.{sys.argv[1]}").load)
