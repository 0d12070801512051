"""The bench: the 34 M model, compiled, one thread, a batch of contexts that decode.

`engine` drives the engine itself; `kernel` asks an in-process kernel by as many clients, which get their answers whole;
`stream` does the same and is told every token. `front` is the kernel's socket loop, on a core of its own where there
is one; what the clients spend is not counted.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios_evals.replay_model import random_model, write_tokenizer
from aios_evals.step_bench.drive import drive_clients, drive_engine
from aios_evals.step_bench.stopwatch import Spent, cheapest
from aios_kernel.config import Config

if TYPE_CHECKING:
    from aios_kernel.server.inprocess import InProcessKernel

PATHS = ("engine", "kernel", "stream")
DTYPES = ("float32", "bfloat16")
_WINDOW = 16
"""Steps in which every context fills one block."""


def run(
    paths: Sequence[str] = PATHS,
    dtypes: Sequence[str] = DTYPES,
    batch: int = 32,
    steps: int = 320,
    model: Any = None,
    *,
    compile: bool = True,
) -> list[dict[str, Any]]:
    """Rows `{path, dtype, batch, part, us, share}`; `outside` is the step without its forward.

    Args:
        paths: of `PATHS`.
        dtypes: of `DTYPES`.
        batch: contexts in a step.
        steps: to measure of each.
        model: another than the 34 M one, of its vocabulary.
        compile: whether it runs compiled.
    """
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)  # of this thread, which drives the engine; the kernel sets its own
    logging.disable_progress_bar()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="aios-step-") as folder:
        target = Path(folder) / "model"
        _write(target, model)
        for dtype in dtypes:
            with _kernel(Path(folder) / dtype, target, dtype, batch, compile=compile) as kernel:
                for path in paths:
                    if path == "engine":
                        measured = drive_engine(kernel, batch, steps)
                    else:
                        measured = drive_clients(kernel, batch, steps, stream=path == "stream")
                    rows += _rows(path, dtype, batch, cheapest(measured, _WINDOW))
    return rows


def _rows(path: str, dtype: str, batch: int, spent: Spent) -> list[dict[str, Any]]:
    step = sum(spent.values())
    told = {"step": step, "outside": step - spent["forward"], **spent}
    return [
        {"path": path, "dtype": dtype, "batch": batch, "part": part, "us": seconds * 1e6, "share": seconds / step}
        for part, seconds in told.items()
    ]


def _write(folder: Path, model: Any) -> None:
    """The model with a tokenizer as large as its vocabulary, trained on made-up words."""
    chooser = random.Random(3)
    words = ["".join(chooser.choices("aeioulnrstdmkpg", k=chooser.randint(2, 9))) for _ in range(30_000)]
    write_tokenizer(folder, [" ".join(words)])
    (model or random_model()).save_pretrained(folder, safe_serialization=True)


@contextmanager
def _kernel(home: Path, model: Path, dtype: str, batch: int, *, compile: bool) -> Generator[InProcessKernel]:
    from aios_kernel.server.inprocess import InProcessKernel

    config = Config(
        home=str(home), kernel="inprocess", model=str(model), device="cpu", dtype=dtype, threads=1, compile=compile,
        kv_tokens=batch * 512, embedder="hash", vectors="exact",
    )  # fmt: skip
    running = InProcessKernel(config)
    try:
        yield running
    finally:
        running.stop()
