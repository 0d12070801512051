"""A LoRA adapter in PEFT's format, written as the GGUF file that llama.cpp wants."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from aios_kernel.errors import ConfigError, Unsupported

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_PLAIN = {"llama", "qwen2", "qwen3"}
"""Architectures whose layers have these names (Mistral is `llama` there)."""
_TENSOR = re.compile(r"(?:base_model\.model\.)?model\.layers\.(\d+)\.(.+)\.lora_([AB])\.weight")
_MORE = ("use_dora", "modules_to_save", "alpha_pattern", "layer_replication", "lora_bias")
"""What makes more of it than the product of two matrices, when it is set."""


def write_gguf(folder: Path, target: Path, architecture: str, heads: dict[str, int]) -> None:
    """Convert an adapter.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        target: the file to write.
        architecture: of the model, in GGUF's names.
        heads: how many the model has, of queries (`attn_q`) and of keys (`attn_k`).

    Raises:
        ConfigError: the files are missing or damaged.
        Unsupported: it is no plain LoRA of linear layers, or of an architecture whose names are not known here.
    """
    import gguf
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if architecture not in _PLAIN:
        raise Unsupported(
            f"adapters in PEFT's format are not converted for {architecture} models",
            fix="convert it by llama.cpp's convert_lora_to_gguf.py and name the GGUF file",
        )
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
        alpha = _alpha(config)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(f"the LoRA adapter in {folder} cannot be read: {error}", fix="download it again") from error
    writer: Any = gguf.GGUFWriter(target, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, tensor in tensors.items():
        renamed, half = _renamed(name)
        values = tensor.float().numpy()
        count = heads.get(renamed.rpartition(".")[2])
        if half == "b" and count is not None and architecture == "llama":
            values = _rotated(values, count)
        writer.add_tensor(f"{renamed}.weight.lora_{half}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _alpha(config: dict[str, Any]) -> float:
    """What llama.cpp divides by the rank."""
    more = [name for name in _MORE if config.get(name)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or more:
        kind = ", ".join(more) or f"{config.get('peft_type')} with bias {config.get('bias')}"
        raise Unsupported(f"the adapter is no plain LoRA: {kind}", fix="train it without, or merge it into the model")
    alpha = float(config["lora_alpha"])
    return alpha * math.sqrt(config["r"]) if config.get("use_rslora") else alpha


def _renamed(name: str) -> tuple[str, str]:
    found = _TENSOR.fullmatch(name)
    if found is None or found[2] not in _NAMES:
        raise Unsupported(f"the adapter changes {name}, which is no linear layer of a block", fix="use another adapter")
    return f"blk.{found[1]}.{_NAMES[found[2]]}", found[3].lower()


def _rotated(values: Any, heads: int) -> Any:
    """Rows in llama.cpp's order: it rotates neighbours, transformers rotates halves."""
    rows, rank = values.shape
    return values.reshape(heads, 2, rows // heads // 2, rank).swapaxes(1, 2).reshape(rows, rank)
