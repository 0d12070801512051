"""The tiers below the KV pool: snapshots in host memory within a budget, the oldest of them moved on to the disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast

from aios_kernel.context.disk import DiskTier, Stored
from aios_kernel.context.place import Place
from aios_kernel.context.space import SwapSpace
from aios_kernel.engine.protocol import Engine, Grammar, Snapshot, SnapshotFiles

_BEGIN = 0.5
"""Share of the host budget above which snapshots move to the disk, so that the next one finds room."""
_UNKNOWN_ROOM = 1 << 40
"""Tokens that have room as long as nothing was ever swapped out."""


@dataclass(frozen=True, slots=True)
class _Write:
    """A snapshot on its way to the disk; it stays in host memory until it is there."""

    snapshot: Snapshot
    nbytes: int
    done: Future[Stored]


class SwapTiers:
    """Where snapshots are kept. Driven by the dispatcher's thread, which never waits for a disk here.

    Args:
        engine: whose snapshots they are.
        load_grammar: the codec's, for snapshots that come back from the disk.
        space: the budgets.
    """

    def __init__(self, engine: Engine[Any, Any], load_grammar: Callable[[str], Grammar], space: SwapSpace) -> None:
        self._space = space
        self._disk: DiskTier | None = None
        if space.folder is not None and engine.capabilities.snapshot_files:
            files = cast("SnapshotFiles[Any]", engine)
            self._disk = DiskTier(files, load_grammar, space.folder, space.disk_bytes)
        self._host: OrderedDict[Place, int] = OrderedDict()  # bytes in host memory, the oldest first
        self._writes: dict[Place, _Write] = {}
        self._fetching: set[Place] = set()
        self._token_bytes = 0  # of the newest snapshot; not known before the first one
        self.host_bytes = 0
        self.tokens_out = 0  # of KV, in all snapshots so far

    @property
    def disk_bytes(self) -> int:
        """What is on disk or on its way there."""
        return self._disk.used_bytes if self._disk is not None else 0

    @property
    def has_room(self) -> bool:
        """Whether host memory can take one more snapshot; it may exceed the budget by that one."""
        return self.host_bytes < self._space.host_bytes

    @property
    def room_tokens(self) -> int:
        """Tokens of KV that all tiers together can still take, going by the size of the snapshots so far."""
        if not self.has_room:
            return 0
        disk = self._space.disk_bytes - self._disk.used_bytes if self._disk is not None else 0
        room = self._space.host_bytes - self.host_bytes + max(0, disk)
        return room // self._token_bytes if self._token_bytes else _UNKNOWN_ROOM

    @property
    def fetching(self) -> bool:
        """Whether a snapshot is on its way back from the disk."""
        return bool(self._fetching)

    def keep(self, place: Place, snapshot: Snapshot) -> None:
        """Take a snapshot into host memory."""
        place.snapshot = snapshot
        self._host[place] = snapshot.nbytes
        self.host_bytes += snapshot.nbytes
        self._token_bytes = snapshot.nbytes // max(1, snapshot.computed)
        self.tokens_out += snapshot.computed
        self._move_on()

    def bring(self, place: Place) -> Snapshot | None:
        """The snapshot, once it is in host memory; None while it is on its way. Raises SnapshotError."""
        if place.stored is None or self._disk is None:
            return place.snapshot
        if place.fetching is None:
            place.fetching = self._disk.fetch(place.stored)
            self._fetching.add(place)
        if not place.fetching.done():
            return None
        self._fetching.discard(place)
        fetched, place.fetching = place.fetching, None
        self._disk.remove(place.stored)
        place.stored = None
        place.snapshot = fetched.result()
        self._host[place] = place.snapshot.nbytes
        self.host_bytes += place.snapshot.nbytes
        return place.snapshot

    def forget(self, place: Place) -> None:
        """Free what the tiers hold of a sequence: it is back in the pool, or has ended."""
        if place.snapshot is None and place.stored is None:
            return  # most were never swapped out
        write = self._writes.get(place)
        if write is not None and self._disk is not None and write.done.cancel():
            del self._writes[place]
            self._disk.cancelled(write.nbytes)
        self.host_bytes -= self._host.pop(place, 0)
        self._fetching.discard(place)
        if place.stored is not None and self._disk is not None:
            self._disk.remove(place.stored)
        place.snapshot = place.stored = place.fetching = None

    def settle(self) -> None:
        """Book the writes that have ended since; cheap when none is under way."""
        for place in [place for place, write in self._writes.items() if write.done.done()]:
            self._book(place, self._writes.pop(place))
            self._move_on()

    def close(self) -> None:
        """Delete all files."""
        if self._disk is not None:
            self._disk.close()

    def _book(self, place: Place, write: _Write) -> None:
        assert self._disk is not None
        error = write.done.exception()
        if error is not None:
            self._disk.failed(error, write.nbytes)
        elif place.snapshot is write.snapshot:
            self.host_bytes -= self._host.pop(place)
            place.snapshot, place.stored = None, write.done.result()
        else:  # it came back, or ended, meanwhile
            self._disk.remove(write.done.result())

    def _move_on(self) -> None:
        """Begin to write the oldest snapshots while host memory is fuller than it should be."""
        if self._disk is None:
            return
        excess = self.host_bytes - sum(write.nbytes for write in self._writes.values())
        excess -= int(self._space.host_bytes * _BEGIN)
        for place, nbytes in self._host.items():
            if excess <= 0:
                break
            if place.snapshot is None or place in self._writes or not nbytes or not self._disk.has_room(nbytes):
                continue
            self._writes[place] = _Write(place.snapshot, nbytes, self._disk.store(place.snapshot))
            excess -= nbytes
