"""PEFT: `generate` with `adapter_names`, its own way to answer a batch of different adapters."""

from __future__ import annotations

import copy
import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from aios_evals.lora_bench.task import Case, Prompts, Task


class Peft:
    """See `worker.Engine`. All requests of a case are one batch."""

    def __init__(self, task: Task) -> None:
        self.versions = {name: importlib.metadata.version(name) for name in ("peft", "transformers")}
        self._new = task.new
        self._base: Any = AutoModelForCausalLM.from_pretrained(
            task.model, dtype=getattr(torch, task.dtype), use_safetensors=True
        ).eval()
        self._adapted: Any = None
        self.vocab: int = self._base.config.vocab_size

    def load(self, number: int, folder: Path) -> None:
        """See `worker.Engine.load`."""
        if self._adapted is None:
            self._adapted = PeftModel.from_pretrained(copy.deepcopy(self._base), folder, adapter_name=f"a{number}")
            self._adapted.eval()
        else:
            self._adapted.load_adapter(folder, adapter_name=f"a{number}")

    def run(self, case: Case, prompts: Prompts, *, adapted: bool) -> tuple[list[list[int]], float | None]:
        """See `worker.Engine.run`."""
        model, options = self._base, dict[str, Any]()
        if adapted:
            names = [f"a{number % case.loras}" if case.loras else "__base__" for number in range(len(prompts))]
            model, options = self._adapted, {"adapter_names": names}
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=self._new, do_sample=False,
                eos_token_id=None, pad_token_id=0, **options,
            )  # fmt: skip
        return output[:, ids.shape[1] :].tolist(), None
