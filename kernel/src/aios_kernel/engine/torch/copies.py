"""How KV gets between the pool and the host: at once on the CPU, over queues of its own on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from aios_kernel.engine.torch.kv import KvMemory
from aios_kernel.engine.torch.mover import Mover
from aios_kernel.engine.torch.paged.staging import Stage
from aios_kernel.engine.torch.paged.streams import lane_on


class Copies(Protocol):
    """Copies of blocks; `out` and `back` run on the threads of their movers."""

    outward: Mover
    inward: Mover

    def mark(self) -> Any:
        """A point behind all that the forwards so far have done; on the engine's thread."""
        ...

    def out(self, data: Sequence[Tensor], blocks: Sequence[int], mark: Any, gathered: Callable[[], None]) -> None:
        """Copy blocks of all pools to the host, one tensor a pool; `gathered` once they are not read any more."""
        ...

    def back(self, data: Sequence[Tensor], blocks: Sequence[int], rows: Sequence[int], mark: Any) -> None:
        """Copy these rows of what `out` gave into blocks."""
        ...


class HostCopies:
    """See `Copies`. One thread, so that a copy out and the copy back of what it made are in order."""

    def __init__(self, memory: KvMemory) -> None:
        self._memory = memory
        self.outward = self.inward = Mover(background=True)

    def mark(self) -> Any:
        """See `Copies.mark`: a forward is over when it returns."""
        return None

    def out(self, data: Sequence[Tensor], blocks: Sequence[int], mark: Any, gathered: Callable[[], None]) -> None:
        """See `Copies.out`."""
        self._memory.read_into(data, blocks)
        gathered()

    def back(self, data: Sequence[Tensor], blocks: Sequence[int], rows: Sequence[int], mark: Any) -> None:
        """See `Copies.back`."""
        self._memory.write(blocks, data, rows)


class DeviceCopies:
    """See `Copies`. A queue, a stage and a thread for each direction: the link carries both at once."""

    def __init__(self, memory: KvMemory, *, inline_bytes: int = 0) -> None:
        self._out, self._in = (Stage(memory.by_block(), lane_on(memory.device)) for _ in range(2))
        self.outward, self.inward = (Mover(background=True, inline_bytes=inline_bytes) for _ in range(2))

    def mark(self) -> Any:
        """See `Copies.mark`."""
        return self._out.lane.mark()

    def out(self, data: Sequence[Tensor], blocks: Sequence[int], mark: Any, gathered: Callable[[], None]) -> None:
        """See `Copies.out`."""
        self._out.out(data, blocks, mark, gathered)

    def back(self, data: Sequence[Tensor], blocks: Sequence[int], rows: Sequence[int], mark: Any) -> None:
        """See `Copies.back`."""
        self._in.back(data, blocks, rows, mark)


def copies_of(memory: KvMemory) -> Copies:
    """What fits the pool's device."""
    return DeviceCopies(memory) if memory.device.type == "cuda" else HostCopies(memory)
