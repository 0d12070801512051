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
from aios_kernel.engine.torch.compiled import CompiledForward, keep_rotations
from aios_kernel.engine.torch.kv import KvMemory, LayerShape
from aios_kernel.engine.torch.layout import Chunk, Layout
from aios_kernel.engine.torch.lora.layers import attach
from aios_kernel.engine.torch.lora.sites import find_sites
from aios_kernel.engine.torch.lora.table import Switch, Table
from aios_kernel.engine.torch.packed import pack_linears
from aios_kernel.errors import Unsupported

_log = logging.getLogger(__name__)

_MANY = 62
"""Tokens of the example that several are compiled by: with few, the compiler would not share work between threads."""
_LAYER_TYPES = {"full_attention", "sliding_attention"}


class ModelRunner:
    """Runs a causal model of transformers, unchanged, with our attention function.

    Args:
        model: a loaded `*ForCausalLM` in evaluation mode, on its device and in its dtype. Its attention
            implementation is switched to the paged one for good.
        native: whether its linear layers may be multiplied by compiled code (`pack_linears`).

    Raises:
        Unsupported: the model keeps state outside its attention, or its attention needs what ours does not compute.
    """

    def __init__(self, model: Any, *, native: bool = True) -> None:
        self.model = model.eval()
        self.config: Any = model.config.get_text_config()
        parameter = next(model.parameters())
        self.device: torch.device = parameter.device
        self.dtype: torch.dtype = parameter.dtype
        _check_config(self.config, model)
        attention.register()
        model.set_attn_implementation(attention.NAME)
        self.vocab: int = model.get_output_embeddings().weight.shape[0]
        self.sites = find_sites(model)
        pack_linears(model, native=native)
        self._compiled: CompiledForward | None = None
        self._compiled_adapted: CompiledForward | None = None
        self._switch: Switch | None = None
        self._mask: Tensor | None = None
        self.shapes = self._probe()

    @property
    def adaptable(self) -> bool:
        """Whether `take_adapters` was called."""
        return self._switch is not None

    @property
    def compiled(self) -> bool:
        """Whether `compile` was called and succeeded."""
        return self._compiled is not None

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        layout: Layout,
        memory: KvMemory,
        rows: Tensor,
        adapters: Table | None = None,
    ) -> Tensor:
        """Compute packed tokens and write their KV; give the logits of the rows asked for.

        Args:
            ids: packed tokens, [tokens].
            positions: their positions in their contexts, [tokens].
            layout: where they live.
            memory: the KV pool.
            rows: which of the tokens need logits, [n].
            adapters: the tokens' LoRA adapters, once `take_adapters` was called; None: no token has one.

        Returns:
            Logits, [n, vocab]: float32 on a GPU, on the CPU in the model's dtype, since a first choice needs no other.
        """
        inputs = ids, positions, rows, (layout, memory)
        if adapters is None:
            return self._logits(*inputs) if self._compiled is None else self._run_compiled(self._compiled, *inputs)
        assert self._switch is not None
        with self._switch.running(adapters):
            compiled = self._compiled_adapted
            return self._logits(*inputs) if compiled is None else self._run_compiled(compiled, *inputs)

    def take_adapters(self) -> None:
        """Have the layers look for adapters from now on, in forwards that have some; the others run as before.

        A compiled model is compiled once more, for these forwards.
        """
        if self._switch is not None:
            return
        self._switch = Switch()
        attach(self.model, self._switch)
        if self._compiled is None:
            return
        try:
            self._compiled_adapted = self._compile_adapted(self._switch)
        except Exception as error:  # noqa: BLE001 - as in `compile`
            _log.warning("%s runs uncompiled where contexts have adapters: %s", type(self.model).__name__, error)

    def _logits(self, ids: Tensor, positions: Tensor, rows: Tensor, forward: attention.Forward | int) -> Tensor:
        out = self.model(
            input_ids=ids[None],
            position_ids=positions[None],
            attention_mask=self._mask,
            use_cache=False,
            logits_to_keep=rows,
            aios_forward=forward,
        )
        return out.logits[0] if self.device.type == "cpu" else out.logits[0].float()

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return int(self.config.num_attention_heads)

    def hand_over_a_mask(self) -> None:
        """Keep transformers from looking for the borders of packed sequences, for which it waits for the device.

        A mask of four dimensions is taken for a finished one and handed on; our attention reads none.
        """
        self._mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)

    def compile(self) -> None:
        """Fuse what lies between the products and the attention, for any number of tokens.

        Takes some seconds up to a minute, less when it was done before (the compiler keeps its work in a folder). A
        model that the compiler cannot take, or a machine without a C++ compiler, runs as before.
        """
        started = time.monotonic()
        keep_rotations(self.model)
        try:
            self._compiled = self._compile(self._logits)
        except Exception as error:  # noqa: BLE001 - a compiler can fail in any way; the model still runs without it
            _log.warning("%s runs uncompiled: %s", type(self.model).__name__, error)
        else:
            _log.info("compiled %s in %.0f s", type(self.model).__name__, time.monotonic() - started)

    def _compile(self, forward: Callable[..., Tensor]) -> CompiledForward:
        recorder = _Recorder(self.dtype, self.device)
        with torch.inference_mode(), attention.running((_alone(_MANY, self.device), recorder), id(self)) as number:
            ids, positions, rows = (torch.arange(n, device=self.device) for n in (_MANY, _MANY, _MANY // 2))
            single = (ids[:1], positions[:1], rows[:1], number)
            return CompiledForward(forward, single, (ids, positions, rows, number))

    def _compile_adapted(self, switch: Switch) -> CompiledForward:
        """The forward with adapters; while it is compiled no row has one."""

        def adapted(ids: Tensor, positions: Tensor, rows: Tensor, number: int) -> Tensor:
            return self._logits(ids, positions, rows, number)

        with switch.running(Table([], self.sites, lambda adapter: adapter.weights, self.device)):
            return self._compile(adapted)

    def _run_compiled(
        self, compiled: CompiledForward, ids: Tensor, positions: Tensor, rows: Tensor, forward: attention.Forward
    ) -> Tensor:
        """A compiled forward, which would be made anew for no row and for one row of several tokens."""
        least = min(2, len(ids))
        padded = torch.cat([rows, rows.new_zeros(least - len(rows))]) if len(rows) < least else rows
        with attention.running(forward, id(self)) as number:
            return compiled(ids, positions, padded, number)[: len(rows)]

    def _probe(self) -> list[LayerShape]:
        """Run two tokens through the model to learn what each of its layers stores."""
        recorder = _Recorder(self.dtype, self.device)
        try:
            with torch.inference_mode():
                ids = torch.zeros(2, dtype=torch.long, device=self.device)
                positions = torch.arange(2, device=self.device)
                self.forward(ids, positions, _alone(2, self.device), recorder, positions[:1])
        except attention.UnsupportedAttention as error:
            raise _unsupported(self.model, str(error)) from error
        layers = int(self.config.num_hidden_layers)
        if sorted(recorder.seen) != list(range(layers)):
            raise _unsupported(self.model, f"only {len(recorder.seen)} of its {layers} layers use attention")
        return [recorder.seen[layer] for layer in range(layers)]


def _alone(tokens: int, device: torch.device) -> Layout:
    """A layout of tokens that attend to nothing but each other."""
    slots = torch.arange(tokens, device=device)
    return Layout(slots, [], [Chunk(0, tokens, 0, slots[:1])])


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
