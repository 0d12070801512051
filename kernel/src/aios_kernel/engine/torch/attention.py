"""Attention over paged KV blocks, as a function that any transformers model calls in place of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aios_kernel.engine.torch.direct import call_directly
from aios_kernel.engine.torch.kv import KvMemory
from aios_kernel.engine.torch.layout import PIECE, Chunk, DecodeGroup, Layout
from aios_kernel.engine.torch.native.memory import NativeKvMemory, Scoring
from aios_kernel.engine.torch.paged.memory import PagedKvMemory

NAME = "aios_paged"
"""The name under which transformers finds the function."""

_UNKNOWN = ("s_aux", "position_bias", "head_mask")
"""Arguments of some models (attention sinks, learned biases) that would change the result and are not served."""


Forward = tuple[Layout, KvMemory]
"""What the attention of one forward works on."""

_running: dict[int, Forward] = {}
"""The forwards of compiled models while they run: a compiled graph carries tensors and numbers, no objects."""


class UnsupportedAttention(Exception):
    """The model asks its attention for something that the paged function does not compute."""


def register() -> None:
    """Make the function known to transformers; may be called again."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    function: Callable[..., tuple[Tensor, None]] = paged_attention
    AttentionInterface.register(NAME, function)
    AttentionMaskInterface.register(NAME, _no_mask)


@contextmanager
def running(forward: Forward, number: int) -> Generator[int]:
    """Let a compiled model find its forward under a number that no other model uses."""
    _running[number] = forward
    try:
        yield number
    finally:
        del _running[number]


def paged_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Write new keys and values to their slots, then attend to the blocks of each row's context.

    Args:
        module: the attention layer; `layer_idx` says which.
        query: [1, heads, rows, dim].
        key: [1, kv_heads, rows, dim], as `value`.
        value: see `key`.
        attention_mask: always None; the layout says who sees what.
        options: what the model and the runner pass on: `aios_forward`, `scaling`, `sliding_window`, `softcap`, and some
            that do not matter here.

    Returns:
        The attended values, [1, rows, heads, dim], and no weights.
    """
    forward: Forward | int | None = options.get("aios_forward")
    if forward is None:
        raise UnsupportedAttention(f"{type(module).__name__} does not hand its arguments on to its attention")
    for name in _UNKNOWN:
        if options.get(name) is not None:
            raise UnsupportedAttention(f"{type(module).__name__} passes `{name}` to its attention")
    layer = int(getattr(module, "layer_idx"))  # noqa: B009 - nn.Module types its attributes as Tensor | Module
    scale: float = options.get("scaling") or query.shape[-1] ** -0.5
    window, softcap = options.get("sliding_window"), options.get("softcap")
    if isinstance(forward, int):
        return torch.ops.aios.paged_attention(query, key, value, forward, layer, scale, window, softcap), None
    layout, memory = forward
    return _attend(query, key, value, layout, _Attend(memory, layer, scale, window, softcap)), None


def attend_by_number(  # noqa: PLR0913 - an operation takes tensors and numbers only
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forward: int,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """`paged_attention` as one operation that a compiled model calls without looking inside.

    The KV pool that it writes is no argument, so that nothing copies it. The order of the layers is kept because each
    needs the result of the one before.
    """
    layout, memory = _running[forward]
    if layout.plan is not None and isinstance(memory, NativeKvMemory):
        return memory.attend(layer, layout.plan, query, key, value, Scoring(scale, window, softcap))
    return _attend(query, key, value, layout, _Attend(memory, layer, scale, window, softcap))


def _shape_of_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


_operations = torch.library.Library("aios", "FRAGMENT")
_operations.define(
    "paged_attention(Tensor query, Tensor key, Tensor value, SymInt forward, SymInt layer, float scale, "
    "SymInt? window, float? softcap) -> Tensor"
)
for _device in ("CPU", "CUDA"):
    _operations.impl("paged_attention", attend_by_number, _device)
torch.library.register_fake("aios::paged_attention", _shape_of_attention, lib=_operations)
call_directly(torch.ops.aios.paged_attention.default, attend_by_number)


def _attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, attend: _Attend) -> Tensor:
    scoring = Scoring(attend.scale, attend.window, attend.softcap)
    if layout.plan is not None and isinstance(attend.memory, NativeKvMemory):
        return attend.memory.attend(attend.layer, layout.plan, query, key, value, scoring)
    if layout.paged is not None and isinstance(attend.memory, PagedKvMemory):
        return attend.memory.attend(attend.layer, layout.paged, query, key, value, scoring)
    attend.memory.put(attend.layer, layout.slots, key, value)
    parts = [attend.group(query, key, value, group) for group in layout.groups]
    parts += [attend.chunk(query, key, value, chunk) for chunk in layout.chunks]
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None]


class _Attend:
    """One layer's attention with its options."""

    def __init__(self, memory: KvMemory, layer: int, scale: float, window: int | None, softcap: float | None) -> None:
        self.memory = memory
        self.layer = layer
        self.scale = scale
        self.window = window
        self.softcap = softcap

    def group(self, query: Tensor, key: Tensor, value: Tensor, group: DecodeGroup) -> Tensor:
        """One token each of several contexts: [rows, heads, dim]."""
        rows = group.high - group.low
        q = query[0, :, group.low : group.high].transpose(0, 1)
        k, v = group.fetch(self.memory, self.layer, key, value)
        mask = group.mask(self.window, q.dtype)
        if _grouped_heads(q):
            out = self._attention(q[:, :, None], k, v, mask=mask)
        else:
            # The query heads that share a KV head become its rows, so that keys and values are not repeated.
            out = self._attention(q.reshape(rows, k.shape[1], -1, q.shape[-1]), k, v, mask=mask)
        return out.reshape(rows, q.shape[1], v.shape[-1])

    def chunk(self, query: Tensor, key: Tensor, value: Tensor, chunk: Chunk) -> Tensor:
        """Consecutive tokens of one context: [rows, heads, dim]."""
        q, rows = query[:, :, chunk.low : chunk.high], slice(chunk.low, chunk.high)
        if chunk.plain(self.window):
            return self._attention(q, key[:, :, rows], value[:, :, rows], causal=True)[0].transpose(0, 1)
        k, v = self.memory.gather(self.layer, chunk.blocks, 1)
        parts: list[Tensor] = []
        for first in range(0, q.shape[2], PIECE):
            piece = q[:, :, first : first + PIECE]
            mask = chunk.mask(self.window, q.dtype, first, piece.shape[2])
            seen = mask.shape[-1]
            parts.append(self._attention(piece, k[:, :, :seen], v[:, :, :seen], mask=mask)[0].transpose(0, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        if self.softcap is not None:
            return self._capped(q, k, v, _causal(q, k) if causal else mask)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale, enable_gqa=q.shape[1] != k.shape[1]
        )

    def _capped(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention whose scores pass `softcap * tanh(score / softcap)` (Gemma 2)."""
        cap = self.softcap or math.inf
        if q.shape[1] != k.shape[1]:
            repeat = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        scores = torch.tanh(q @ k.transpose(-1, -2) * (self.scale / cap)) * cap
        if mask is not None:
            scores = scores + mask
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


def _grouped_heads(q: Tensor) -> bool:
    """Whether SDPA's own handling of grouped heads is the faster one: measured so for bfloat16 on the CPU."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16


def _causal(q: Tensor, k: Tensor) -> Tensor:
    shape = (q.shape[-2], k.shape[-2])
    return torch.full(shape, float("-inf"), dtype=q.dtype, device=q.device).triu(1)


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """The mask that transformers should build for this attention: none."""
