"""Continuous batching of transformers: its manager's thread, paged attention by SDPA, blocks of a prefix shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers.utils import logging

_PAGE = 32
_POOL_TOKENS = 24_576
_STEP_TOKENS = 2048


class ContinuousPeer:
    """See `loop.Peer`."""

    def __init__(self, model: Any) -> None:
        self.versions = {"transformers": transformers.__version__}
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=_PAGE, num_blocks=_POOL_TOKENS // _PAGE, max_batch_tokens=_STEP_TOKENS
            ),
        )
        self._manager.start()

    def generate(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> list[list[int]]:
        """See `loop.Peer.generate`."""
        ids = self._manager.add_requests([list(prompt) for prompt in prompts], max_new_tokens=n_tokens)
        answers: dict[str, list[int]] = {}
        while len(answers) < len(ids):
            result = self._manager.get_result(timeout=60)
            if result is None:
                raise RuntimeError("the manager gave no result for a minute")
            if result.error is not None:
                raise RuntimeError(result.error)
            if result.is_finished():
                answers[result.request_id] = list(result.generated_tokens)
        return [answers[request] for request in ids]

    def close(self) -> None:
        """See `loop.Peer.close`."""
        self._manager.stop(block=True, timeout=5)


def load(model: str, dtype: str, threads: int) -> ContinuousPeer:
    """See `loop.Load`."""
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    weights: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), use_safetensors=True)
    return ContinuousPeer(weights.eval())
