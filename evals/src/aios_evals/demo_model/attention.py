"""Causal attention for the training: plain bfloat16 products where they beat the fused kernel of the CPU."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

#: Up to here the backward pass of the fused kernel takes longer than two plain products on a CPU with bfloat16 units.
_PLAIN_UP_TO: Final = 512
_MASK: Final = torch.full((_PLAIN_UP_TO, _PLAIN_UP_TO), float("-inf"), dtype=torch.bfloat16).triu(1)


def use_training_attention(model: PreTrainedModel) -> None:
    """Make the model use it; saved weights and configuration know nothing of it."""
    AttentionInterface.register("demo_training", _attention)
    model.set_attn_implementation("demo_training")


def _attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float = 1.0, **_: object
) -> tuple[Tensor, None]:
    """Attend; q, k and v have the shape (rows, heads, tokens, head size), rows are padded on the right."""
    tokens = q.shape[2]
    with torch.autocast("cpu", enabled=False):
        q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
        if tokens > _PLAIN_UP_TO:
            out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        else:
            weights = (q * scaling) @ k.transpose(-1, -2) + _MASK[:tokens, :tokens]
            out = weights.softmax(-1) @ v
    return out.transpose(1, 2), None
