"""A process that runs one engine: `python -m aios_evals.lora_bench.worker torch|peft`, a `Task` on standard input."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Protocol

import msgspec
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from aios_evals.lora_bench.adapters import write_adapter
from aios_evals.lora_bench.task import Answer, Case, Prompts, Round, Task


class Engine(Protocol):
    """An engine as the bench sees it."""

    versions: dict[str, str]
    vocab: int

    def load(self, number: int, folder: Path) -> None:
        """Load an adapter."""
        ...

    def run(self, case: Case, prompts: Prompts, *, adapted: bool) -> tuple[list[list[int]], float | None]:
        """Greedy answers, and CPU seconds of a step that only decodes; request i has adapter i modulo `case.loras`."""
        ...


def main() -> None:
    """Do a task; the answer is JSON on standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    answers.write(msgspec.json.encode(_do(task, _make(sys.argv[1], task))))
    answers.close()


def _make(name: str, task: Task) -> Engine:
    if name == "peft":
        from aios_evals.lora_bench.peft_peer import Peft

        return Peft(task)
    from aios_evals.lora_bench.ours import Ours

    return Ours(task)


def _do(task: Task, engine: Engine) -> Answer:
    load_s = _load(task, engine)
    _round(task, engine, task.cases[0], -1)
    most = max(case.rounds for case in task.cases)
    turns = [(turn, case) for turn in range(most) for case in task.cases if turn < case.rounds]
    return Answer([_round(task, engine, case, turn) for turn, case in turns], engine.versions, load_s)


def _load(task: Task, engine: Engine) -> float:
    """Write and load the adapters, one after the other in one place: many of them are gigabytes."""
    shapes = AutoModelForCausalLM.from_pretrained(task.model, use_safetensors=True)
    spent = 0.0
    with tempfile.TemporaryDirectory(prefix="aios-lora-") as folder:
        for number in range(task.registered):
            write_adapter(Path(folder), shapes, rank=task.rank, seed=number)
            began = time.process_time()
            engine.load(number, Path(folder))
            if number:  # the first one also makes the engine ready for adapters
                spent += time.process_time() - began
    return spent / max(1, task.registered - 1)


def _round(task: Task, engine: Engine, case: Case, turn: int) -> Round:
    """A case with and without adapters, in an order that changes from round to round."""
    prompts = task.prompts(case, turn, engine.vocab)
    found: dict[bool, tuple[float, list[list[int]], float | None]] = {}
    for adapted in (True, False) if turn % 2 else (False, True):
        began = time.process_time()
        answers, step_s = engine.run(case, prompts, adapted=adapted)
        found[adapted] = time.process_time() - began, answers, step_s
    (cpu_s, answers, step_s), (base_cpu_s, _, base_step_s) = found[True], found[False]
    return Round(case, cpu_s, base_cpu_s, step_s, base_step_s, answers)


if __name__ == "__main__":
    main()
