"""The models of the bench: Llama shapes with random weights from a seed, written once as safetensors."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WINDOW = 8192
_SEED = 20_261_121


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int


SHAPES = {
    "1m": Shape(512, 160, 400, 4, 5, 5),
    "34m": Shape(8192, 512, 1536, 8, 8, 4),
    "500m": Shape(49_152, 1024, 4096, 24, 16, 8),
}
"""1.3, 33.6 and 478 million weights; all engines at once take 20 GB of memory for the last in float32."""


def ensure(folder: Path, name: str) -> Path:
    """The folder of a model below `folder`, made if it is not there (some seconds; the largest takes 2 GB)."""
    shape = asdict(SHAPES[name])
    digest = hashlib.sha256(repr((shape, WINDOW, _SEED)).encode()).hexdigest()[:8]
    target = folder / f"bench-{name}-{digest}"
    if not (target / "model.safetensors").is_file():
        building = target.with_suffix(".part")
        _write(building, shape)
        building.rename(target)
    return target


def _write(folder: Path, shape: dict[str, int]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    # A wider initialisation than the usual 0.02 makes the logits spread about as those of a trained model.
    config = LlamaConfig(
        max_position_embeddings=WINDOW,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **shape,  # pyright: ignore[reportArgumentType] - the configuration's fields are the shape's
    )
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        model: Any = LlamaForCausalLM(config)
    model.save_pretrained(folder, safe_serialization=True, max_shard_size="8GB")
