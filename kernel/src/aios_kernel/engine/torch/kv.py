"""The KV pool's memory: one tensor of keys and one of values a layer, cut into blocks of 16 tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aios_kernel.engine.torch.prefix import BLOCK

_LINE = 64
"""Bytes of a cache line: a vector that lies across two is loaded twice."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a layer stores of each token: `heads` keys of `key_dim` and as many values of `value_dim`."""

    heads: int
    key_dim: int
    value_dim: int

    @property
    def width(self) -> int:
        """Numbers stored of each token."""
        return self.heads * (self.key_dim + self.value_dim)


class KvMemory:
    """Keys and values of all layers.

    `keys[l]` has shape [blocks * 16, heads, key_dim]: block b holds the slots 16 b to 16 b + 15. All memory starts as
    zeros, because masked slots still enter a product with weight zero, and zero times NaN is NaN.
    """

    def __init__(
        self, shapes: Sequence[LayerShape], n_blocks: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.n_blocks = n_blocks
        self.device = device
        self.dtype = dtype
        slots = n_blocks * BLOCK
        self.keys = [_zeros((slots, s.heads, s.key_dim), dtype, device) for s in shapes]
        self.values = [_zeros((slots, s.heads, s.value_dim), dtype, device) for s in shapes]
        self._scratch = [torch.empty(0, dtype=dtype, device=device) for _ in range(2)]

    def put(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Write new tokens of a layer to their slots; `key` and `value` have shape [1, heads, tokens, dim]."""
        self.keys[layer].index_copy_(0, slots, key[0].transpose(0, 1))
        self.values[layer].index_copy_(0, slots, value[0].transpose(0, 1))

    def gather(self, layer: int, blocks: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values in `blocks`, shared out to `rows` contexts: [rows, heads, slots, dim] each.

        They lie in scratch memory (touching fresh pages costs more than the copy itself) until the next call.
        """
        keys, values = self._gather(self.keys[layer], blocks, 0), self._gather(self.values[layer], blocks, 1)
        return _rows(keys, rows), _rows(values, rows)

    def copy_out(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """A copy of the keys and values in `blocks` that the caller may keep: [slots, heads, dim] each."""
        keys, values = self.keys[layer], self.values[layer]
        return (
            self._by_block(keys).index_select(0, blocks).view(-1, *keys.shape[1:]),
            self._by_block(values).index_select(0, blocks).view(-1, *values.shape[1:]),
        )

    def shapes(self, n_blocks: int) -> list[tuple[int, ...]]:
        """Shapes of what `read` gives for so many blocks."""
        return [(n_blocks, *self._by_block(pool).shape[1:]) for pool in self._pools()]

    def read(self, blocks: Sequence[int]) -> list[Tensor]:
        """Copy blocks of every layer to the host: keys and values in turn, each [len(blocks), 16, ...]."""
        out = [torch.empty(shape, dtype=self.dtype) for shape in self.shapes(len(blocks))]
        self.read_into(out, blocks)
        return out

    def read_into(self, out: Sequence[Tensor], blocks: Sequence[int]) -> None:
        """Copy blocks of every layer to tensors of these `shapes`. Touches no other block: may run beside a forward."""
        if not blocks:
            return
        if self._on_host:
            index = np.array(blocks, dtype=np.int64)
            for pool, part in zip(self._pools(), out, strict=True):
                np.take(self._raw(pool), index, axis=0, out=_raw(part, len(blocks)), mode="clip")
        else:
            device_index = torch.tensor(blocks, device=self.device)
            for pool, part in zip(self._pools(), out, strict=True):
                part.copy_(self._by_block(pool).index_select(0, device_index))

    def write(self, blocks: Sequence[int], data: Sequence[Tensor], rows: Sequence[int]) -> None:
        """Put the rows of what `read` gave into blocks. Touches no other block and may run beside a forward."""
        if not blocks:
            return
        everything = len(rows) == len(data[0])
        if self._on_host:
            index, source = np.array(blocks, dtype=np.int64), np.array(rows, dtype=np.int64)
            for pool, part in zip(self._pools(), data, strict=True):
                raw = _raw(part, len(part))
                self._raw(pool)[index] = raw if everything else raw[source]
        else:
            device_index = torch.tensor(blocks, device=self.device)
            for pool, part in zip(self._pools(), data, strict=True):
                chosen = part if everything else part[torch.tensor(rows)]
                self._by_block(pool).index_copy_(0, device_index, chosen.to(pool.device))

    def numbers(self, blocks: Sequence[int]) -> Tensor:
        """All that stands in blocks, on the device: layer after layer, keys and values in turn; [numbers]."""
        index = torch.tensor(blocks, device=self.device)
        return torch.cat([self._by_block(pool).index_select(0, index).view(-1) for pool in self._pools()])

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Copy the first `n_tokens` of one block of every layer; zeros follow, whatever the source has there."""
        for pool in self._pools():
            blocks = self._by_block(pool)
            blocks[target].copy_(blocks[source])
        self._clear_behind(target, n_tokens)

    def _clear_behind(self, block: int, n_tokens: int) -> None:
        for pool in self._pools():
            self._by_block(pool)[block, n_tokens:].zero_()

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero blocks of every layer."""
        if not blocks:
            return
        for pool in self._pools():
            by_block = self._by_block(pool)
            for block in blocks:
                by_block[block].zero_()

    def by_block(self) -> list[Tensor]:
        """The pool's own tensors, keys and values of the layers in turn, each [blocks, 16, heads, dim]."""
        return [self._by_block(pool) for pool in self._pools()]

    def _pools(self) -> list[Tensor]:
        return [pool for pair in zip(self.keys, self.values, strict=True) for pool in pair]

    def _gather(self, pool: Tensor, blocks: Tensor, which: int) -> Tensor:
        size = len(blocks) * BLOCK * pool.shape[1] * pool.shape[2]
        if len(self._scratch[which]) < size:
            self._scratch[which] = torch.empty(size, dtype=pool.dtype, device=pool.device)
        out = self._scratch[which][:size].view(len(blocks), BLOCK, *pool.shape[1:])
        torch.index_select(self._by_block(pool), 0, blocks, out=out)
        return out.view(-1, *pool.shape[1:])

    @property
    def _on_host(self) -> bool:
        return self.device.type == "cpu"

    def _raw(self, pool: Tensor) -> NDArray[np.uint8]:
        return _raw(pool, self.n_blocks)

    def _by_block(self, pool: Tensor) -> Tensor:
        return pool.view(self.n_blocks, BLOCK, *pool.shape[1:])


def _raw(tensor: Tensor, rows: int) -> NDArray[np.uint8]:
    """The bytes of a contiguous host tensor, [rows, bytes]; numpy copies them on one thread, without the GIL."""
    return tensor.view(-1).view(torch.uint8).view(rows, -1).numpy()


def _rows(slots: Tensor, rows: int) -> Tensor:
    return slots.view(rows, -1, *slots.shape[1:]).transpose(1, 2)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the CPU pages come from the system on first touch, so that an idle pool costs no memory."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + _LINE, dtype=np.uint8)
    begin = -raw.ctypes.data % _LINE
    return torch.from_numpy(raw[begin : begin + size]).view(dtype).view(shape)
