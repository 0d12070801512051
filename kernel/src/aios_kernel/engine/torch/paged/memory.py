"""The KV pool of a GPU, and the launches of its kernels."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aios_kernel.engine.torch.kv import KvMemory, LayerShape
from aios_kernel.engine.torch.native.memory import Scoring
from aios_kernel.engine.torch.paged.plan import PagedPlan, Tiling
from aios_kernel.engine.torch.prefix import BLOCK

_log = logging.getLogger(__name__)
_LANES = 64
_WAVES = 4
"""Programs for each multiprocessor, so that none waits for the last of the others."""
_HOST_PROCESSORS = 1
"""Stands for the multiprocessors of the interpreter's CPU."""


def interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU (`TRITON_INTERPRET=1`)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def served(device: torch.device) -> bool:
    """Whether the kernels can run: Triton is installed, and there is a GPU or its interpreter.

    On a GPU one of them is tried: Triton needs a C compiler for what starts its kernels, and a driver that it knows.
    """
    if device.type != "cuda" and not interpreted():
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    return device.type != "cuda" or _works(device)


@functools.cache
def _works(device: torch.device) -> bool:
    try:
        memory = PagedKvMemory([LayerShape(1, 16, 16)], 2, dtype=torch.float32, device=device, heads=1)
        memory.put(0, torch.zeros(1, dtype=torch.int64, device=device), *torch.ones(2, 1, 1, 1, 16, device=device))
        return bool(memory.keys[0][0].sum() == memory.keys[0].shape[2])
    except Exception as error:  # noqa: BLE001 - a compiler or driver can fail in any way; the gathered road remains
        _log.warning("attention runs without Triton's kernels: %s: %s", type(error).__name__, error)
        return False


class PagedKvMemory(KvMemory):
    """A pool that is attended to where it lies.

    Args:
        shapes: of the layers.
        n_blocks: of the pool.
        dtype: of keys and values.
        device: a GPU, or the CPU under Triton's interpreter.
        heads: query heads of a layer.
        library: whether chunks without a past, which need no blocks, go to torch's own attention.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        n_blocks: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        heads: int,
        library: bool = True,
    ) -> None:
        super().__init__(shapes, n_blocks, dtype=dtype, device=device)
        self._library = library
        widest = max((max(s.key_dim, s.value_dim) for s in shapes), default=1)
        group = max((heads // s.heads for s in shapes), default=1)
        large = widest > 128 or dtype == torch.float32
        self._tile = 32 if large else 64
        self.tiling = Tiling(
            group=group,
            kv_heads=max((s.heads for s in shapes), default=1),
            lanes=max(_LANES, _power(group)),
            piece=64 if large else 128,
            programs=_WAVES * _processors(device),
        )

    def attend(
        self, layer: int, plan: PagedPlan, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Write new keys and values, then attend; arguments as of `attention.paged_attention`.

        Returns:
            The attended values, [1, rows, heads, dim].
        """
        query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
        self._put(layer, plan.slots, key, value)
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        call = _Call(self, layer, plan, query, scoring, out)
        if len(plan.lengths):
            call.decode()
        if len(plan.pieces):
            call.chunks(key, value, library=self._library)
        return out

    def put(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """See `KvMemory.put`; a negative slot is none."""
        self._put(layer, slots, *(x if x.stride(3) == 1 else x.contiguous() for x in (key, value)))

    def _put(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        from aios_kernel.engine.torch.paged import kernels

        heads, key_dim, value_dim = key.shape[1], key.shape[3], value.shape[3]
        launch(
            kernels.put, (len(slots),), key, value, self.keys[layer], self.values[layer], slots,
            *key.stride()[1:3], *value.stride()[1:3], HEADS=heads, KEY_DIM=key_dim, VALUE_DIM=value_dim,
            HEADS_PAD=_power(heads), KEY_PAD=_power(key_dim), VALUE_PAD=_power(value_dim),
        )  # fmt: skip

    @property
    def tile(self) -> int:
        """Tokens that a program reads at once."""
        return self._tile


class _Call:
    """One layer's attention."""

    def __init__(
        self, memory: PagedKvMemory, layer: int, plan: PagedPlan, query: Tensor, scoring: Scoring, out: Tensor
    ) -> None:
        self._plan, self._query, self._scoring, self._out = plan, query, scoring, out
        self._tiling = memory.tiling
        self._pool = memory.keys[layer], memory.values[layer]
        self._kv_heads, self._heads = self._pool[0].shape[1], query.shape[1]
        key_dim, value_dim = self._pool[0].shape[2], self._pool[1].shape[2]
        self._common: dict[str, Any] = {
            "KV_HEADS": self._kv_heads, "KEY_DIM": key_dim, "VALUE_DIM": value_dim,
            "KEY_PAD": max(16, _power(key_dim)), "VALUE_PAD": max(16, _power(value_dim)), "TILE": memory.tile,
            "BLOCK": BLOCK, "WINDOWED": scoring.window is not None, "CAPPED": scoring.softcap is not None,
            "WIDE": interpreted(),
        }  # fmt: skip
        self._numbers = (
            *query.stride()[1:3], float(scoring.scale), float(scoring.softcap or 0.0), int(scoring.window or 0),
        )  # fmt: skip

    def decode(self) -> None:
        """Rows of single tokens: what several share once, what is their own in splits, and both merged."""
        from aios_kernel.engine.torch.paged import kernels

        plan, group = self._plan, self._heads // self._kv_heads
        rows, units = len(plan.lengths), len(plan.units)
        parts = plan.splits + (plan.unit_splits if units else 0)
        partial = self._query.new_empty(rows, self._heads, parts, self._common["VALUE_DIM"], dtype=torch.float32)
        weights = partial.new_empty(rows, self._heads, parts)
        where = (self._query, *self._pool, plan.offsets, plan.tables, plan.lengths)
        launch(
            kernels.decode, (rows, self._kv_heads, plan.splits), *where, plan.shared, partial, weights,
            *self._numbers, SPLITS=plan.splits, PARTS=parts, GROUP=group, M=max(16, _power(group)),
            num_warps=4, num_stages=3, **self._common,
        )  # fmt: skip
        if units:
            launch(
                kernels.prefix, (units, self._kv_heads, plan.unit_splits), *where, plan.units, partial, weights,
                *self._numbers, SPLITS=plan.unit_splits, FIRST=plan.splits, PARTS=parts, GROUP=group,
                M=self._tiling.lanes, num_warps=4, num_stages=2, **self._common,
            )  # fmt: skip
        launch(
            kernels.merge, (rows, self._heads), partial, weights, plan.shared, self._out, SPLITS=plan.splits,
            PARTS=parts, HEADS=self._heads, VALUE_DIM=self._common["VALUE_DIM"], PARTS_PAD=_power(parts),
            VALUE_PAD=self._common["VALUE_PAD"], num_warps=8 if parts > 32 else 4,
        )  # fmt: skip

    def chunks(self, key: Tensor, value: Tensor, *, library: bool) -> None:
        """Chunks: by torch's own attention if they have no past, else by ours over the blocks."""
        from aios_kernel.engine.torch.paged import kernels

        plan, window = self._plan, self._scoring.window
        longest = max((high - low for low, high in plan.plain), default=0)
        library = library and self._scoring.softcap is None and (window is None or longest <= window)
        pieces = plan.pieces[: len(plan.pieces) - plan.plain_pieces] if library else plan.pieces
        if library:
            for low, high in plan.plain:
                rows = slice(low, high)
                self._out[0, rows] = _causal(self._query[:, :, rows], key[:, :, rows], value[:, :, rows], self._scoring)
        if len(pieces):
            launch(
                kernels.chunk, (len(pieces), self._heads), self._query, *self._pool, plan.tables, pieces, self._out,
                *self._numbers, HEADS=self._heads, M=self._tiling.piece, num_warps=8, num_stages=2, **self._common,
            )  # fmt: skip


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a kernel: everything that one does goes through here."""
    run: Callable[..., Any] = kernel[grid]
    run(*arguments, **constants)


def _causal(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
    """[rows, heads, dim]."""
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scoring.scale, enable_gqa=grouped)
    return out[0].transpose(0, 1)


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return _HOST_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _power(n: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(0, n - 1).bit_length()
