"""A context in host memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.host import HostMemory, bytes_of, tensors_in
from aios_kernel.errors import SnapshotError


@dataclass(slots=True, weakref_slot=True)
class TorchSnapshot:
    """See `aios_kernel.engine.protocol.Snapshot`. It can be restored more than once.

    Attributes:
        fingerprint: of the engine that it was taken from.
        state: the context without its blocks.
        pool: names the pool that `blocks` are of.
        blocks: number and generation of each block it had: a block that still holds that content is attached again
            instead of being copied, so that contexts with a common prefix share it again.
        data: keys and values of all its blocks, as `KvMemory.read` gives them; complete once `copied` is done.
        copied: done when the copy from the pool is made.
    """

    fingerprint: str
    state: TorchContext
    pool: str
    blocks: list[tuple[int, int]]
    data: list[Tensor]
    copied: Future[None]

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer."""
        return self.state.tokens

    @property
    def computed(self) -> int:
        """How many tokens have KV."""
        return self.state.computed

    @property
    def nbytes(self) -> int:
        """Size of the KV data in bytes."""
        return sum(part.nbytes for part in self.data)

    def wait(self) -> None:
        """Return once the data is complete. Raises SnapshotError if it cannot be."""
        error = self.copied.exception()
        if error is not None:
            raise SnapshotError(f"the context could not be copied to host memory: {error}") from error

    def save(self, path: Path) -> None:
        """See `aios_kernel.engine.protocol.Snapshot.save`."""
        from aios_kernel.engine.torch.snapshot_file import state_of, write

        self.wait()
        write(path, state_of(self.state, self.fingerprint, self.pool, self.blocks), self.data)


def new_snapshot(
    host: HostMemory,
    state: TorchContext,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    *,
    named: tuple[str, str],
    blocks: list[tuple[int, int]],
) -> TorchSnapshot:
    """A snapshot whose data is still to be filled; its memory goes back to `host` when the snapshot is gone.

    `named` is the fingerprint and the name of the pool. Raises MemoryError.
    """
    piece = host.take(bytes_of(shapes, dtype))
    copied: Future[None] = Future()
    copied.set_result(None)
    snapshot = TorchSnapshot(named[0], state, named[1], blocks, tensors_in(piece, shapes, dtype), copied)
    weakref.finalize(snapshot, host.give_back, piece).atexit = False
    return snapshot
