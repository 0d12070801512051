"""The forward of a transformers model over paged KV."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from aios_kernel.engine.torch import attention
from aios_kernel.engine.torch.kv import KvMemory, LayerShape
from aios_kernel.engine.torch.layout import Chunk, Layout
from aios_kernel.engine.torch.packed import pack_linears
from aios_kernel.errors import Unsupported

_LAYER_TYPES = {"full_attention", "sliding_attention"}


class ModelRunner:
    """Runs a causal model of transformers, unchanged, with our attention function.

    Args:
        model: a loaded `*ForCausalLM` in evaluation mode, on its device and in its dtype. Its attention
            implementation is switched to the paged one for good.

    Raises:
        Unsupported: the model keeps state outside its attention, or its attention needs what ours does not compute.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.config: Any = model.config.get_text_config()
        parameter = next(model.parameters())
        self.device: torch.device = parameter.device
        self.dtype: torch.dtype = parameter.dtype
        _check_config(self.config, model)
        attention.register()
        model.set_attn_implementation(attention.NAME)
        self.vocab: int = model.get_output_embeddings().weight.shape[0]
        pack_linears(model)
        self.shapes = self._probe()

    def forward(self, ids: Tensor, positions: Tensor, layout: Layout, memory: KvMemory, rows: Tensor) -> Tensor:
        """Compute packed tokens and write their KV; give float32 logits of the rows asked for.

        Args:
            ids: packed tokens, [tokens].
            positions: their positions in their contexts, [tokens].
            layout: where they live.
            memory: the KV pool.
            rows: which of the tokens need logits, [n].

        Returns:
            Logits, [n, vocab].
        """
        out = self.model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=rows,
            aios_layout=layout,
            aios_memory=memory,
        )
        return out.logits[0].float()

    def _probe(self) -> list[LayerShape]:
        """Run two tokens through the model to learn what each of its layers stores."""
        recorder = _Recorder(self.dtype, self.device)
        ids = torch.zeros(2, dtype=torch.long, device=self.device)
        positions = torch.arange(2, device=self.device)
        layout = Layout(positions, [], [Chunk(0, 2, 0, ids[:1])])
        try:
            with torch.inference_mode():
                self.forward(ids, positions, layout, recorder, ids[:1])
        except attention.UnsupportedAttention as error:
            raise _unsupported(self.model, str(error)) from error
        layers = int(self.config.num_hidden_layers)
        if sorted(recorder.seen) != list(range(layers)):
            raise _unsupported(self.model, f"only {len(recorder.seen)} of its {layers} layers use attention")
        return [recorder.seen[layer] for layer in range(layers)]


class _Recorder(KvMemory):
    """A pool that keeps nothing but the shapes of what the layers store."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__([], 1, dtype=dtype, device=device)
        self.seen: dict[int, LayerShape] = {}

    def put(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        self.seen[layer] = LayerShape(heads=key.shape[1], key_dim=key.shape[3], value_dim=value.shape[3])


def _check_config(config: Any, model: Any) -> None:
    if model.config.is_encoder_decoder:
        raise _unsupported(model, "it is an encoder-decoder")
    if model.get_output_embeddings() is None or "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise _unsupported(model, "it cannot give the logits of chosen positions")
    strange = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if strange:
        raise _unsupported(model, f"it has layers of type {', '.join(sorted(strange))}")


def _unsupported(model: Any, why: str) -> Unsupported:
    return Unsupported(
        f"the torch engine cannot run {type(model).__name__}: {why}",
        fix="choose a decoder-only model with (sliding-window) attention in every layer, such as Llama or Qwen",
    )
