"""The forward of a transformers model over paged KV."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aios_kernel.engine.torch import attention
from aios_kernel.engine.torch.kv import KvMemory, LayerShape
from aios_kernel.engine.torch.layout import Chunk, Layout
from aios_kernel.engine.torch.packed import pack_linears
from aios_kernel.errors import Unsupported

_log = logging.getLogger(__name__)

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
        self._compiled: Callable[[Tensor, Tensor, Tensor, int], Tensor] | None = None
        self._warm = False
        self.shapes = self._probe()

    @property
    def compiled(self) -> bool:
        """Whether `compile` was called and succeeded."""
        return self._compiled is not None

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
        if self._compiled is None:
            return self._logits(ids, positions, rows, (layout, memory))
        return self._run_compiled(ids, positions, rows, (layout, memory))

    def _logits(self, ids: Tensor, positions: Tensor, rows: Tensor, forward: attention.Forward | int) -> Tensor:
        out = self.model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=rows,
            aios_forward=forward,
        )
        return out.logits[0].float()

    def compile(self) -> None:
        """Fuse what lies between the products and the attention, for any number of tokens.

        Takes some seconds up to a minute, less when it was done before (the compiler keeps its work in a folder). A
        model that the compiler cannot take, or a machine without a C++ compiler, runs as before.
        """
        self._compiled = torch.compile(self._logits, dynamic=True, fullgraph=True)
        started = time.monotonic()
        try:
            with torch.inference_mode():
                # A single token makes a graph of its own. The compiler takes what is equal here for equal ever.
                for tokens, rows in ((3, 2), (1, 1)):
                    self._try(tokens, rows, _Recorder(self.dtype, self.device))
        except Exception as error:  # noqa: BLE001 - a compiler can fail in any way; the model still runs without it
            self._compiled = None
            _log.warning("%s runs uncompiled: %s", type(self.model).__name__, error)
        else:
            self._warm = True
            _log.info("compiled %s in %.0f s", type(self.model).__name__, time.monotonic() - started)

    def _run_compiled(self, ids: Tensor, positions: Tensor, rows: Tensor, forward: attention.Forward) -> Tensor:
        """The compiled forward, which would be made anew for no row and for one row of several tokens."""
        assert self._compiled is not None
        least = min(2, len(ids))
        padded = torch.cat([rows, rows.new_zeros(least - len(rows))]) if len(rows) < least else rows
        # The graphs are made, and nothing but the number of tokens decides between them: checking all else, as the
        # compiler does before every call, takes a tenth of a step of one token.
        trusting = torch.compiler.set_stance(skip_guard_eval_unsafe=self._warm)
        with attention.running(forward, id(self)) as number, trusting:
            return self._compiled(ids, positions, padded, number)[: len(rows)]

    def _probe(self) -> list[LayerShape]:
        """Run two tokens through the model to learn what each of its layers stores."""
        recorder = _Recorder(self.dtype, self.device)
        try:
            with torch.inference_mode():
                self._try(2, 1, recorder)
        except attention.UnsupportedAttention as error:
            raise _unsupported(self.model, str(error)) from error
        layers = int(self.config.num_hidden_layers)
        if sorted(recorder.seen) != list(range(layers)):
            raise _unsupported(self.model, f"only {len(recorder.seen)} of its {layers} layers use attention")
        return [recorder.seen[layer] for layer in range(layers)]

    def _try(self, tokens: int, rows: int, memory: KvMemory) -> None:
        """Run some tokens that attend to nothing but each other; ask for the logits of the first `rows`."""
        ids = torch.zeros(tokens, dtype=torch.long, device=self.device)
        positions = torch.arange(tokens, device=self.device)
        layout = Layout(positions, [], [Chunk(0, tokens, 0, ids[:1])])
        self.forward(ids, positions, layout, memory, torch.arange(rows, device=self.device))


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
