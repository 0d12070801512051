"""Random adapters in PEFT's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_STRENGTH = 0.02
"""Standard deviation of both matrices: the model's answers change, and stay of this world."""


def write_adapter(
    folder: Path, model: Any, *, rank: int, seed: int, layers: tuple[str, ...] = LAYERS, strength: float = _STRENGTH
) -> Path:
    """Write an adapter of a transformers model on its linear layers of these names; gives the folder.

    Args:
        folder: made if it is not there; what it holds is overwritten.
        model: loaded, only its layers' names and sizes are looked at.
        rank: of all matrices; the scale is 2.
        seed: of the numbers.
        layers: last parts of the layers' names.
        strength: standard deviation of both matrices.
    """
    import torch
    from safetensors.torch import save_file
    from torch import nn

    source = torch.Generator().manual_seed(seed)
    tensors: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in layers:
            for half, shape in (("A", (rank, module.in_features)), ("B", (module.out_features, rank))):
                numbers = torch.randn(shape, generator=source) * strength
                tensors[f"base_model.model.{name}.lora_{half}.weight"] = numbers
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none",
        "target_modules": [*layers],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
