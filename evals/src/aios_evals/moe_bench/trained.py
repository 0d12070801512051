"""A small mixture that is trained on this package's own source text, character by character, with a balanced router.

A minute of training is far from a real model, but its router is one that learned: experts specialise, none is idle (the
usual auxiliary loss sees to that). So that an expert has bytes worth reading, experts are widened behind the training,
with inputs drawn at random and outputs of nought: the model computes what it did, at the cost of a wider one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WIDTH = 128
"""Of an expert while it is trained."""
_STEPS, _BATCH, _LENGTH = 300, 16, 64
_RATE = 3e-3
_CODES = 128
"""Characters are ASCII; others become `?`."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a mixture; `experts` a layer, of which a token uses `chosen`."""

    layers: int = 8
    hidden: int = 256
    experts: int = 32
    chosen: int = 4
    width: int = 256
    vocab: int = 2048


def build(size: Size) -> Any:
    """A mixture in the shape of Qwen3-MoE with random weights."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    make: Any = Qwen3MoeConfig
    config = make(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.width,
        moe_intermediate_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=size.hidden // 4,
        num_experts=size.experts,
        num_experts_per_tok=size.chosen,
        norm_topk_prob=True,
        router_aux_loss_coef=0.02,
        max_position_embeddings=4096,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Qwen3MoeForCausalLM(config).eval()


def train(size: Size, steps: int = _STEPS) -> Any:
    """A mixture of this size that was trained on the first three quarters of the text."""
    import dataclasses

    import torch

    torch.manual_seed(0)
    model = build(dataclasses.replace(size, width=min(_WIDTH, size.width))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    text = torch.tensor(_text()[: len(_text()) * 3 // 4])
    for step in range(steps):
        at = torch.randint(len(text) - _LENGTH, (_BATCH,))
        ids = torch.stack([text[start : start + _LENGTH] for start in at.tolist()])
        loss = model(input_ids=ids, labels=ids, output_router_logits=True).loss
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - step / steps)
        optimizer.step()
    return _widened(model.eval(), size)


def held_out_loss(model: Any) -> float:
    """Nats a character on text that was not trained on."""
    import torch

    ids = torch.tensor([[*itertools.islice(source_text(0), 2048)]])
    with torch.inference_mode():
        return float(model(input_ids=ids, labels=ids).loss)


def source_text(seed: int) -> Iterator[int]:
    """Characters of the last quarter of the text without end; another seed begins elsewhere."""
    text = _text()
    held = text[len(text) * 3 // 4 :]
    start = seed * 7919 % len(held)
    while True:
        yield from held[start:]
        start = 0


def _text() -> Sequence[int]:
    files = sorted(Path(__file__).parent.parent.rglob("*.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return [ord(letter) if ord(letter) < _CODES else ord("?") for letter in text]


def _widened(model: Any, size: Size) -> Any:
    """The same function from wider experts."""
    wide = build(size)
    state = model.state_dict()
    for name, tensor in wide.state_dict().items():  # views of its weights
        small = state[name]
        if name.endswith("experts.gate_up_proj"):
            halves = tensor.chunk(2, dim=1)
            for half, own in zip(halves, small.chunk(2, dim=1), strict=True):
                half[:, : own.shape[1]] = own
        elif name.endswith("experts.down_proj"):
            tensor.zero_()
            tensor[:, :, : small.shape[2]] = small
        else:
            tensor.copy_(small)
    return wide
