"""A Llama checkpoint as GGUF, for llama.cpp. Needs `gguf`, `safetensors` and numpy, and nothing of ours.

The bench converts its models with it, and the tests of the kernel's llamacpp engine theirs.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Of transformers to llama.cpp."""
_KINDS = {"float32": "F32", "bfloat16": "BF16", "q8_0": "Q8_0"}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


def ensure(folder: Path, dtype: str) -> Path:
    """The GGUF file beside a checkpoint, written if it is not there. Matrices are of `dtype`, norms of float32."""
    target = folder / f"{dtype}.gguf"
    if not target.is_file():
        building = target.with_suffix(".part")
        write(folder, building, dtype)
        building.rename(target)
    return target


def write(folder: Path, target: Path, dtype: str, tokenizer: dict[str, Any] | None = None) -> None:
    """Convert a checkpoint.

    Args:
        folder: with `config.json` and `model.safetensors`, in float32.
        target: the file to write.
        dtype: of the matrices: float32, bfloat16 or q8_0 (rows of a multiple of 32).
        tokenizer: `tokens`, `types`, `merges`, `template` and `end` of a byte-level tokenizer; None: none.
    """
    gguf: Any = importlib.import_module("gguf")
    safetensors: Any = importlib.import_module("safetensors.numpy")
    config = json.loads((folder / "config.json").read_text())
    kind = gguf.GGMLQuantizationType[_KINDS[dtype]]
    writer = gguf.GGUFWriter(target, "llama")
    _describe(writer, config)
    _tell_tokenizer(writer, config, tokenizer)
    for name, tensor in safetensors.load_file(folder / "model.safetensors").items():
        renamed, values = _renamed(name), _rotated(name, tensor, config)
        if values.ndim > 1:
            writer.add_tensor(renamed, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(renamed, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _tell_tokenizer(writer: Any, config: dict[str, Any], tokenizer: dict[str, Any] | None) -> None:
    writer.add_vocab_size(config["vocab_size"])
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer["tokens"])
    writer.add_token_types(tokenizer["types"])
    writer.add_token_merges(tokenizer["merges"])
    writer.add_eos_token_id(tokenizer["end"])
    writer.add_chat_template(tokenizer["template"])


def _renamed(name: str) -> str:
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return f"{_NAMES[name.removesuffix('.weight')]}.weight"
    return f"blk.{layer[1]}.{_NAMES[layer[2]]}.weight"


def _rotated(name: str, tensor: Any, config: dict[str, Any]) -> Any:
    """Queries and keys in llama.cpp's order: it rotates neighbours, transformers rotates halves."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    count = next((count for part, count in heads.items() if f".{part}." in name), None)
    if count is None:
        return tensor
    rows, columns = tensor.shape
    return tensor.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
