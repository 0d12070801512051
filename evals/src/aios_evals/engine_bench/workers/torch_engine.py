"""Our engine, driven as the kernel drives it: decoding contexts first, then prefill chunks in the order of arrival.

Every turn opens a context with the whole history; what the prefix cache holds of it is attached, not computed.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from aios_kernel.engine.protocol import Context, SamplingParams
from aios_kernel.engine.torch import TorchEngine


class TorchPeer:
    """See `loop.Peer`."""

    def __init__(self, engine: TorchEngine) -> None:
        self.versions = {"aios-kernel": importlib.metadata.version("aios-kernel"), "torch": torch.__version__}
        self._engine = engine

    def generate(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> list[list[int]]:
        """See `loop.Peer.generate`."""
        contexts = [self._engine.open(prompt, sampling=SamplingParams()) for prompt in prompts]
        ends = {id(context): len(context.tokens) + n_tokens for context in contexts}
        live = contexts
        while live:
            for output in self._engine.step(self._plan(live)):
                if output.error is not None:
                    raise RuntimeError(output.error)
            live = [context for context in live if len(context.tokens) < ends[id(context)]]
        answers = [context.tokens[-n_tokens:] for context in contexts]
        for context in contexts:
            self._engine.release(context)
        return answers

    def close(self) -> None:
        """See `loop.Peer.close`."""
        self._engine.close()

    def _plan(self, live: Sequence[Context]) -> list[tuple[Context, int]]:
        limits = self._engine.capabilities
        budget, plan = limits.max_step_tokens, list[tuple[Context, int]]()
        for context in sorted(live, key=lambda context: context.pending > 1)[: limits.max_batch]:
            tokens = min(context.pending, budget)
            if not tokens:
                break
            plan.append((context, tokens))
            budget -= tokens
        return plan


def load(model: str, dtype: str, threads: int) -> TorchPeer:
    """See `loop.Load`."""
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), use_safetensors=True)
    return TorchPeer(TorchEngine(weights, compile=True))
