"""Vectors of texts from the loaded model: the mean of its last hidden states, of unit length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aios_kernel.engine.torch.kv import KvMemory, LayerShape
from aios_kernel.engine.torch.layout import Chunk, Layout
from aios_kernel.engine.torch.prefix import BLOCK
from aios_kernel.errors import EngineError


@dataclass(slots=True)
class _Text:
    """A text on its way through the model: its blocks in the scratch memory, and the sum of its hidden states."""

    tokens: Sequence[int]
    blocks: Tensor
    computed: int = 0
    total: Tensor | float = 0.0


class TextEmbedder:
    """Runs texts through the base model, without its head and beside the KV pool, whose contents stay as they are.

    Args:
        model: a `*ForCausalLM` that runs on paged attention.
        shapes: what each of its layers stores of a token.
        max_step_tokens: tokens in one forward; a longer text takes several.
    """

    def __init__(self, model: Any, shapes: Sequence[LayerShape], max_step_tokens: int) -> None:
        parameter = next(model.parameters())
        self._base: Any = model.base_model
        self._shapes = shapes
        self._dtype: torch.dtype = parameter.dtype
        self._device: torch.device = parameter.device
        self._budget = max_step_tokens

    def run(self, texts: Sequence[Sequence[int]]) -> Iterator[list[list[float]]]:
        """See `Engine.embed`. Scratch memory holds the KV of what is computed together: of one long text at most."""
        for group in self._groups(texts):
            yield from self._run_group(group)

    def _groups(self, texts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        """Neighbours that fit one forward together; a text that fits none stays alone."""
        group: list[Sequence[int]] = []
        for tokens in texts:
            if group and sum(map(len, group)) + len(tokens) > self._budget:
                yield group
                group = []
            group.append(tokens)
        if group:
            yield group

    def _run_group(self, group: Sequence[Sequence[int]]) -> Iterator[list[list[float]]]:
        texts: list[_Text] = []
        free = 1  # block 0 is for padding
        for tokens in group:
            after = free + -(-len(tokens) // BLOCK)
            texts.append(_Text(tokens, torch.arange(free, after, device=self._device)))
            free = after
        memory = KvMemory(self._shapes, free, dtype=self._dtype, device=self._device)
        while texts[0].computed < len(texts[0].tokens):
            self._forward(texts, memory)
            done = texts[0].computed == len(texts[0].tokens)
            yield [_unit(text) for text in texts] if done else []

    def _forward(self, texts: Sequence[_Text], memory: KvMemory) -> None:
        """Compute the next tokens of all texts; only a text that is alone can have more than one forward takes."""
        ids: list[int] = []
        spans: list[Tensor] = []
        slots: list[Tensor] = []
        chunks: list[Chunk] = []
        for text in texts:
            end = min(text.computed + self._budget, len(text.tokens))
            span = torch.arange(text.computed, end, device=self._device)
            chunks.append(Chunk(len(ids), len(ids) + len(span), text.computed, text.blocks[: -(-end // BLOCK)]))
            slots.append(text.blocks[span // BLOCK] * BLOCK + span % BLOCK)
            spans.append(span)
            ids += text.tokens[text.computed : end]
        with torch.inference_mode():
            hidden = self._base(
                input_ids=torch.tensor([ids], device=self._device),
                position_ids=torch.cat(spans)[None],
                use_cache=False,
                aios_forward=(Layout(torch.cat(slots), [], chunks), memory),
            ).last_hidden_state[0].float()  # fmt: skip
        for text, chunk in zip(texts, chunks, strict=True):
            text.total = text.total + hidden[chunk.low : chunk.high].sum(dim=0)
            text.computed += chunk.high - chunk.low


def _unit(text: _Text) -> list[float]:
    assert isinstance(text.total, Tensor)
    vector = torch.nn.functional.normalize(text.total, dim=0)
    if not torch.isfinite(vector).all():
        raise EngineError("the model's hidden states of a text are not finite", fix="serve it with dtype float32")
    return vector.tolist()
