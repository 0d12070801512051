"""Contexts out of the pool and back, exactly."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from aios_kernel.engine.protocol import Grammar, KvExhausted
from aios_kernel.engine.torch import snapshot_file
from aios_kernel.engine.torch.blocks import BlockPool
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.copies import copies_of
from aios_kernel.engine.torch.host import HostMemory
from aios_kernel.engine.torch.kv import KvMemory
from aios_kernel.engine.torch.lora.adapter import Adapter
from aios_kernel.engine.torch.mover import Mover
from aios_kernel.engine.torch.prefix import BLOCK
from aios_kernel.engine.torch.snapshot import TorchSnapshot, new_snapshot
from aios_kernel.errors import SnapshotError

_FIX = "serve the model, dtype and device that it was taken with, or run the call again"


class Swapper:
    """Takes snapshots and brings them back; the copies themselves run beside the engine's steps (`Mover`).

    Args:
        pool: bookkeeping of the blocks.
        memory: their content.
        fingerprint: of the engine.
    """

    def __init__(self, pool: BlockPool, memory: KvMemory, fingerprint: str) -> None:
        self._pool = pool
        self._memory = memory
        self._fingerprint = fingerprint
        self._name = secrets.token_hex(8)
        self._host = HostMemory(pinned=memory.device.type == "cuda")
        self._copies = copies_of(memory)

    @property
    def mover(self) -> Mover:
        """Makes the copies to the host."""
        return self._copies.outward

    def close(self) -> None:
        """Wait for copies that are under way and end their threads."""
        self._copies.outward.close()
        self._copies.inward.close()

    def take(self, context: TorchContext) -> TorchSnapshot:
        """Begin to copy a context to host memory; its blocks may be released at once. Raises SnapshotError."""
        if context.poisoned:
            raise SnapshotError("the context's KV is not to be trusted: its logits were not finite")
        blocks = context.blocks
        snapshot = self._empty(context, [(block, self._pool.generation(block)) for block in blocks])
        read: Future[None] = Future()
        copy = functools.partial(self._copy_out, snapshot, blocks, self._copies.mark(), read)
        snapshot.copied = self.mover.run(copy, snapshot.nbytes)
        if not read.done():
            self._pool.copying(blocks, read)
        return snapshot

    def load(
        self, path: Path, grammar: Callable[[str], Grammar] | None, loras: Callable[[str], Adapter]
    ) -> TorchSnapshot:
        """See `snapshot_file.read`; also refuses what this engine cannot continue."""
        snapshot = snapshot_file.read(path, grammar, self._host, loras)
        self.check(snapshot)
        return snapshot

    def bring(self, snapshot: TorchSnapshot) -> TorchContext:
        """A context that continues a snapshot; it has `arrival` until its KV is copied back.

        Raises KvExhausted, or SnapshotError for one that does not fit this engine.
        """
        self.check(snapshot)
        kept = self._reattach(snapshot)
        context = snapshot.state.twin()
        context.published = 0
        copied: list[int] = []
        for row, (block, _) in enumerate(snapshot.blocks):
            if row not in kept:
                block = self._pool.allocate()
                copied.append(row)
            context.push_block(block)
        blocks = [int(context.table[row]) for row in copied]
        part = len(copied) / max(1, len(snapshot.blocks))
        write = functools.partial(self._copy_back, snapshot, blocks, copied, self._copies.mark())
        context.arrival = self._copies.inward.run(write, int(snapshot.nbytes * part))
        return context

    def _empty(self, context: TorchContext, blocks: list[tuple[int, int]]) -> TorchSnapshot:
        state = context.twin()
        state.cut_blocks(0)
        named = (self._fingerprint_of(context), self._name)
        shapes, dtype = self._memory.shapes(len(blocks)), self._memory.dtype
        try:
            return new_snapshot(self._host, state, shapes, dtype, named=named, blocks=blocks)
        except (MemoryError, RuntimeError) as error:
            raise SnapshotError(f"no host memory for a snapshot: {error}", fix="lower kv_host_bytes") from error

    def check(self, snapshot: TorchSnapshot) -> None:
        """Raise SnapshotError for a snapshot that this engine cannot continue."""
        own = self._fingerprint_of(snapshot.state)
        if snapshot.fingerprint != own:
            raise SnapshotError(f"the snapshot is of {snapshot.fingerprint}, this engine is {own}", fix=_FIX)
        n_blocks = len(snapshot.blocks)
        if [tuple(part.shape) for part in snapshot.data] != self._memory.shapes(n_blocks):
            raise SnapshotError("the snapshot's KV has another shape than this engine's", fix=_FIX)

    def _fingerprint_of(self, context: TorchContext) -> str:
        """What must be equal for a context to be continued: the engine, and the adapter's weights."""
        lora = context.lora
        return self._fingerprint if lora is None else f"{self._fingerprint}:lora:{lora.digest.hex()[:32]}"

    def _copy_out(self, snapshot: TorchSnapshot, blocks: list[int], mark: Any, read: Future[None]) -> None:
        """`read` is done once the blocks may be written again, which can be before the copy is complete."""
        try:
            if blocks:
                self._copies.out(snapshot.data, blocks, mark, lambda: read.set_result(None))
        finally:
            if not read.done():
                read.set_result(None)

    def _copy_back(self, snapshot: TorchSnapshot, blocks: list[int], rows: list[int], mark: Any) -> None:
        snapshot.wait()
        if blocks:
            self._copies.back(snapshot.data, blocks, rows, mark)

    def _reattach(self, snapshot: TorchSnapshot) -> set[int]:
        """Retain the snapshot's blocks that are still in the pool; give their rows. Raises KvExhausted."""
        own = snapshot.blocks if snapshot.pool == self._name else []
        # Full blocks only: a fork may have gone on writing in the tail that it shared, and have published it since.
        own = own[: snapshot.state.computed // BLOCK]
        kept = {row for row, (block, generation) in enumerate(own) if self._pool.holds(block, generation)}
        for row in kept:
            self._pool.retain(own[row][0])
        needed = len(snapshot.blocks) - len(kept)
        if needed > self._pool.available:
            self._pool.release(own[row][0] for row in sorted(kept, reverse=True))
            raise KvExhausted(f"{needed} blocks needed, {self._pool.available} available")
        return kept
