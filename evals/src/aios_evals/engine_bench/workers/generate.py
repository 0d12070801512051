"""What a user has without any engine: transformers `generate`, one prompt after the other, each prefilled anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.utils import logging


class GeneratePeer:
    """See `loop.Oracle`."""

    def __init__(self, model: Any) -> None:
        self.versions = {"transformers": transformers.__version__}
        self._model = model

    def generate(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> list[list[int]]:
        """See `loop.Peer.generate`."""
        return [self._one(prompt, n_tokens) for prompt in prompts]

    def close(self) -> None:
        """See `loop.Peer.close`."""
        del self._model

    def margin(self, tokens: Sequence[int]) -> float:
        """See `loop.Oracle.margin`."""
        with torch.inference_mode():
            logits = (
                self._model(torch.tensor([list(tokens)], device=self._model.device), logits_to_keep=1)
                .logits[0, -1]
                .float()
            )
        best = logits.topk(2).values
        return float(best[0] - best[1])

    def _one(self, prompt: Sequence[int], n_tokens: int) -> list[int]:
        ids = torch.tensor([list(prompt)], device=self._model.device)
        with torch.inference_mode():
            output = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_tokens, do_sample=False, eos_token_id=None
            )
        return output[0, len(prompt) :].tolist()


def load(model: str, dtype: str, threads: int) -> GeneratePeer:
    """See `loop.Load`."""
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    weights: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), use_safetensors=True)
    return GeneratePeer(weights.eval())
