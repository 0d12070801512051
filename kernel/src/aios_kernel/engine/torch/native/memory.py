"""The KV pool in the order that the compiled attention reads, and the call of it."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aios_kernel.engine.torch.kv import KvMemory, LayerShape
from aios_kernel.engine.torch.native.build import library
from aios_kernel.engine.torch.native.plan import Plan
from aios_kernel.engine.torch.prefix import BLOCK

_FUNCTIONS = {torch.float32: "aios_attend_float32", torch.bfloat16: "aios_attend_bfloat16"}
_TOUCHED_BYTES = 256 << 20
"""Of the pool, at the start: blocks are handed out in order, so that these are the first to be used."""
_call = struct.Struct("11P 14q 2f").pack
"""`Call` of attention.cpp: query, key, value, out, keys, values, slots, positions, tables, offsets, units; strides of
query, key and value by head and row; rows, n_units, heads, kv_heads, key_dim, value_dim, window, threads; scale,
softcap."""


class Scoring(NamedTuple):
    """How scores are made: scaled, capped by `softcap * tanh(score / softcap)`, seen for the last `window` tokens."""

    scale: float
    window: int | None = None
    softcap: float | None = None


def served(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether compiled attention can be had."""
    return device.type == "cpu" and dtype in _FUNCTIONS and library() is not None


def stored(shapes: Sequence[LayerShape]) -> list[LayerShape]:
    """What such a pool stores of a token: keys padded to whole words, values to whole vectors of 16."""
    return [LayerShape(s.heads, -(-s.key_dim // 2) * 2, -(-s.value_dim // 16) * 16) for s in shapes]


class NativeKvMemory(KvMemory):
    """A pool whose blocks have another order inside (attention.cpp); copied and cleared as any other.

    Args:
        shapes: of the model, see `stored`.
        n_blocks: of the pool.
        dtype: float32 or bfloat16.
        device: the CPU.
    """

    def __init__(
        self, shapes: Sequence[LayerShape], n_blocks: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(stored(shapes), n_blocks, dtype=dtype, device=device)
        self._touch()
        self._raw_rows = [self._raw(pool) for pool in self._pools()]
        self._raw_values = [self._by_word(pool) for pool in self.values]
        self._plan: Plan | None = None
        self._where: tuple[int, ...] = ()
        self._run: Any = getattr(library(), _FUNCTIONS[dtype])
        self._run.restype = None
        self._run.argtypes = [ctypes.c_char_p]
        self._pointers = [
            (keys.data_ptr(), values.data_ptr()) for keys, values in zip(self.keys, self.values, strict=True)
        ]

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """See `KvMemory.copy`; through numpy, in a tenth of the time."""
        for rows in self._raw_rows:
            rows[target] = rows[source]
        self._clear_behind(target, n_tokens)

    def _clear_behind(self, block: int, n_tokens: int) -> None:
        """Values only: a key behind the last token is scored and then masked, a value is multiplied by zero."""
        lanes = 4 // self.dtype.itemsize  # tokens whose numbers share a word
        word, lane = divmod(n_tokens, lanes)
        for words in self._raw_values:
            if lane:
                words[block, :, word, :, lane:] = 0
            words[block, :, word + bool(lane) :] = 0

    def _touch(self) -> None:
        """Have the system lay the first pages down now: within a step they would take a tenth of its time."""
        block_bytes = sum(pool.nbytes for pool in self._pools()) // self.n_blocks
        blocks = min(self.n_blocks, _TOUCHED_BYTES // max(1, block_bytes))
        for pool in self._pools():
            self._by_block(pool)[:blocks].zero_()

    def _by_word(self, pool: Tensor) -> NDArray[Any]:
        """Bits of values: [blocks, heads, words of tokens, size, tokens of a word]."""
        bits = np.uint32 if self.dtype.itemsize == 4 else np.uint16
        lanes = 4 // self.dtype.itemsize
        return self._raw(pool).view(bits).reshape(self.n_blocks, pool.shape[1], BLOCK // lanes, pool.shape[2], lanes)

    def attend(self, layer: int, plan: Plan, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Write new keys and values, then attend; arguments as of `attention.paged_attention`.

        Returns:
            The attended values, [1, rows, heads, dim].
        """
        query, key, value = _by_numbers(query), _by_numbers(key), _by_numbers(value)
        (_, heads, rows, key_dim), (_, kv_heads, _, value_dim) = query.shape, value.shape
        out = torch.empty((1, rows, heads, value_dim), dtype=query.dtype)
        if plan is not self._plan:
            self._plan, self._where = plan, _addresses(plan)
        call = _call(
            query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr(), *self._pointers[layer], *self._where,
            *query.stride()[1:3], *key.stride()[1:3], *value.stride()[1:3],
            rows, len(plan.units), heads, kv_heads, key_dim, value_dim,
            scoring.window or 0, torch.get_num_threads(), scoring.scale, scoring.softcap or 0.0,
        )  # fmt: skip
        self._run(call)
        return out


def _by_numbers(x: Tensor) -> Tensor:
    """With the numbers of a head side by side."""
    return x if x.stride(3) == 1 else x.contiguous()


def _addresses(plan: Plan) -> tuple[int, ...]:
    """Of what every layer is told; worked out once a step."""
    return tuple(array.ctypes.data for array in (plan.slots, plan.positions, plan.tables, plan.offsets, plan.units))
