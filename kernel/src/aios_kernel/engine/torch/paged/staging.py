"""Scattered blocks as one long copy: gathered on the device first, so that the link sees a few large pieces.

Many small copies are what makes switching contexts slow (FastSwitch, arXiv 2411.18424): a block of one layer has some
tens of KiB, and every copy costs microseconds before its first byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from aios_kernel.engine.torch.paged.streams import Lane

STAGING_BYTES = 256 << 20
"""Device memory for each direction. A context that fits is gathered whole, and its blocks are free at once."""


class Stage:
    """One direction of copies between a pool and the host.

    Args:
        pools: the pool's tensors, each [blocks, ...] and contiguous.
        lane: the queue that the copies go through.
        nbytes: of device memory to gather in; a pool's part of a copy that is larger is cut by blocks.
    """

    def __init__(self, pools: Sequence[Tensor], lane: Lane, nbytes: int = STAGING_BYTES) -> None:
        self._pools = [pool.view(pool.shape[0], -1) for pool in pools]
        self.lane = lane
        self._nbytes = nbytes
        self._buffer: Tensor | None = None  # on the host taken at the first copy: most engines never swap
        if self._pools and self._pools[0].device.type == "cuda":
            self._room()  # later there may be none

    def out(self, data: Sequence[Tensor], blocks: Sequence[int], mark: object, gathered: Callable[[], None]) -> None:
        """Copy blocks of all pools to host tensors, each [len(blocks), ...]; return when they are there.

        Args:
            data: one a pool, lying one behind the other in host memory.
            blocks: of the pool.
            mark: the point (`Lane.mark`) behind which the blocks' content is complete.
            gathered: called once the blocks themselves are not read any more.
        """
        self.lane.after(mark)
        with self.lane.running():
            pieces = [*self._pieces(data)]
            index = self._index(blocks)
            for number, piece in enumerate(pieces):
                at = 0
                for pool, _, low, high in piece:
                    part = self._part(at, high - low, pool)
                    torch.index_select(pool, 0, index[low:high], out=part)
                    at += part.numel() * part.element_size()
                if number == len(pieces) - 1:
                    self.lane.wait()
                    gathered()
                for run in _runs(piece):
                    run.host.copy_(self._flat(run.begin, run.host), non_blocking=True)
        self.lane.wait()

    def back(self, data: Sequence[Tensor], blocks: Sequence[int], rows: Sequence[int], mark: object) -> None:
        """Copy rows of host tensors into blocks of all pools; return when they are there.

        Args:
            data: as of `out`.
            blocks: where to.
            rows: which rows of the data, as many as blocks; neighbours are copied together.
            mark: the point behind which nobody reads or writes the blocks any more.
        """
        self.lane.after(mark)
        with self.lane.running():
            index = self._index(blocks)
            for low, high in _spans(rows):
                first = rows[low]
                parts = [part[first : first + high - low] for part in data]
                for piece in self._pieces(parts):
                    for run in _runs(piece):
                        self._flat(run.begin, run.host).copy_(run.host, non_blocking=True)
                    at = 0
                    for pool, _, begin, end in piece:
                        part = self._part(at, end - begin, pool)
                        pool.index_copy_(0, index[low + begin : low + end], part)
                        at += part.numel() * part.element_size()
        self.lane.wait()

    def _pieces(self, data: Sequence[Tensor]) -> Iterator[list[_Piece]]:
        """The parts cut so that each group fits the buffer: pool, host tensor, first row, row behind the last."""
        group: list[_Piece] = []
        room = self._nbytes
        for pool, part in zip(self._pools, data, strict=True):
            row = pool.shape[1] * pool.element_size()
            low = 0
            while low < len(part):
                fits = max(0, room // row)
                if not fits and group:
                    yield group
                    group, room = [], self._nbytes
                    continue
                high = min(len(part), low + max(1, fits))
                group.append((pool, part.view(len(part), -1)[low:high], low, high))
                room -= (high - low) * row
                low = high
        if group:
            yield group

    def _index(self, blocks: Sequence[int]) -> Tensor:
        index = torch.tensor(blocks, dtype=torch.int64)
        device = self._pools[0].device
        return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index

    def _part(self, at: int, rows: int, pool: Tensor) -> Tensor:
        """A piece of the buffer as rows of a pool."""
        size = rows * pool.shape[1] * pool.element_size()
        return self._room()[at : at + size].view(pool.dtype).view(rows, pool.shape[1])

    def _flat(self, at: int, host: Tensor) -> Tensor:
        return self._room()[at : at + host.numel() * host.element_size()].view(host.dtype)

    def _room(self) -> Tensor:
        if self._buffer is None:
            widest = max(pool.shape[1] * pool.element_size() for pool in self._pools)
            size = max(self._nbytes, widest)
            self._buffer = torch.empty(size, dtype=torch.uint8, device=self._pools[0].device)
        return self._buffer


_Piece = tuple[Tensor, Tensor, int, int]
"""Pool, host rows, number of the first of them and of the one behind the last."""


class _Run:
    """Host tensors that lie one behind the other, as one, and where the buffer holds them."""

    def __init__(self, begin: int, host: Tensor) -> None:
        self.begin = begin
        self.host = host


def _runs(pieces: Sequence[_Piece]) -> list[_Run]:
    """As few copies as the host's layout allows."""
    runs: list[_Run] = []
    at = 0
    for _, host, _, _ in pieces:
        last = runs[-1].host if runs else None
        nbytes = host.numel() * host.element_size()
        if last is not None and last.data_ptr() + last.numel() * last.element_size() == host.data_ptr():
            size = last.numel() + host.numel()
            runs[-1].host = last.as_strided((size,), (1,), last.storage_offset())
        else:
            runs.append(_Run(at, host.as_strided((host.numel(),), (1,), host.storage_offset())))
        at += nbytes
    return runs


def _spans(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring rows, as first index and the one behind the last."""
    low = 0
    for high in range(1, len(rows) + 1):
        if high == len(rows) or rows[high] != rows[high - 1] + 1:
            yield low, high
            low = high
