"""The engines of the bench and the environments they live in."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_LAUNCH = Path(__file__).parent / "workers" / "launch.py"


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine.

    Attributes:
        name: in the rows.
        module: its worker in `workers`.
        venv: folder of its own environment below the peers' folder; None: it lives in ours.
        sample: conversations that it runs of a batch; None: all. One that answers prompts one after the other takes
            the same time for each, so that its rate is that of a few.
        largest: batch that the default measures it at; it is too slow for more.
    """

    name: str
    module: str
    venv: str | None = None
    sample: Mapping[str, int] | None = None
    largest: int | None = None

    def command(self, folder: Path) -> list[str] | None:
        """What starts its worker, or None where it is not installed."""
        python = Path(sys.executable)
        if self.venv is not None:
            python = folder / self.venv / "bin" / "python"
            if not (folder / self.venv / ".installed").is_file():
                return None
        return [str(python), "-P", str(_LAUNCH), self.module]

    def conversations(self, workload: str, batch: int) -> int:
        """How many conversations of a batch it runs."""
        return min(batch, (self.sample or {}).get(workload, batch))


ENGINES = (
    Engine("generate", "generate", sample={"decode": 4, "agents": 2}),
    Engine("torch", "torch_engine"),
    Engine("vllm", "vllm", venv=".venv-vllm"),
    Engine("llamacpp", "llamacpp", venv=".venv-llamacpp", largest=32),
    Engine("transformers_cb", "transformers_cb", largest=32),
)
"""The oracle first: its answers are what the others' are compared with."""
ORACLE = "generate"
