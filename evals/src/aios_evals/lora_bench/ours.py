"""Our engine: one that knows adapters, and one that has never heard of any."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from aios_evals.lora_bench.adapters import LAYERS
from aios_evals.lora_bench.task import Case, Prompts, Task
from aios_kernel.engine.protocol import Context, SamplingParams
from aios_kernel.engine.torch import TorchEngine

_SPARE = 2048
"""Tokens of KV beyond what contexts and adapters take at least."""
_PADDING = 64
"""Of a layer's sizes, in an adapter, at most."""
BLOCK = 16


class Ours:
    """See `worker.Engine`."""

    def __init__(self, task: Task) -> None:
        self.versions = {"torch": str(torch.__version__)}
        self._new = task.new
        batch, loras = max(case.batch for case in task.cases), max(case.loras for case in task.cases)
        room = batch * (task.prompt + task.new + 32) + _SPARE
        self._base = _engine(task, room, 0)
        self._adapted = _engine(task, room, loras)
        self.vocab = self._base.capabilities.vocab

    def load(self, number: int, folder: Path) -> None:
        """See `worker.Engine.load`."""
        self._adapted.load_lora(f"a{number}", str(folder))

    def run(self, case: Case, prompts: Prompts, *, adapted: bool) -> tuple[list[list[int]], float | None]:
        """See `worker.Engine.run`."""
        engine = self._adapted if adapted else self._base
        names = [f"a{number % case.loras}" if case.loras and adapted else None for number in range(len(prompts))]
        waiting = deque(zip(prompts, names, strict=True))
        contexts: list[Context] = []
        live: list[Context] = []
        steps: list[float] = []
        while live or waiting:
            while waiting and len(live) < case.batch:
                prompt, name = waiting.popleft()
                live.append(engine.open(prompt, sampling=SamplingParams(), lora=name))
                contexts.append(live[-1])
            decodes = all(context.pending == 1 for context in live) and len(live) == case.batch
            began = time.process_time()
            outputs = engine.step(_plan(live, engine.capabilities.max_step_tokens))
            if decodes:
                steps.append(time.process_time() - began)
            if errors := [output.error for output in outputs if output.error]:
                raise RuntimeError(errors[0])
            for context in [*live]:
                if len(context.tokens) >= len(prompts[0]) + self._new:
                    live.remove(context)
                    engine.release(context)
        answers = [context.tokens[len(prompts[0]) :] for context in contexts]
        return answers, statistics.median(steps) if steps else None


def _engine(task: Task, room: int, loras: int) -> TorchEngine:
    """An engine with room for contexts, and for as many adapters as are in use at once."""
    weights: Any = AutoModelForCausalLM.from_pretrained(
        task.model, dtype=getattr(torch, task.dtype), use_safetensors=True
    )
    config = weights.config
    kv_width = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    width = sum(
        module.in_features + module.out_features + _PADDING
        for name, module in weights.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in LAYERS
    )
    tokens = loras * (-(-task.rank * width // kv_width) + BLOCK)
    return TorchEngine(weights, kv_tokens=room + tokens, compile=task.compile)


def _plan(live: Sequence[Context], budget: int) -> list[tuple[Context, int]]:
    """Decoding contexts first, then prompts in the order of their arrival, as the kernel does."""
    plan: list[tuple[Context, int]] = []
    for context in sorted(live, key=lambda context: context.pending > 1):
        tokens = min(context.pending, budget)
        if not tokens:
            break
        plan.append((context, tokens))
        budget -= tokens
    return plan
