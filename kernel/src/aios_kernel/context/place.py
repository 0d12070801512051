"""Where the KV of a sequence is."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from aios_kernel.context.disk import Stored
from aios_kernel.engine.protocol import Context, Snapshot
from aios_kernel.scheduler.protocol import Residency


@dataclass(slots=True, eq=False, kw_only=True)
class Place:
    """A sequence whose KV is in exactly one place: nowhere yet, in the pool, in host memory, on disk.

    Attributes:
        context: in the pool.
        snapshot: in host memory.
        stored: on disk.
        fetching: its way back to host memory.
    """

    context: Context | None = None
    snapshot: Snapshot | None = None
    stored: Stored | None = None
    fetching: Future[Snapshot] | None = None

    @property
    def residency(self) -> Residency:
        """Where the KV is, as the policies see it."""
        if self.context is not None:
            return Residency.RESIDENT
        return Residency.QUEUED if self.snapshot is None and self.stored is None else Residency.SWAPPED

    @property
    def length(self) -> int:
        """Tokens of the sequence, prompt and answer."""
        place = self.context or self.snapshot
        if place is not None:
            return len(place.tokens)
        return self.stored.length if self.stored is not None else 0

    @property
    def computed(self) -> int:
        """Tokens with KV."""
        place = self.context or self.snapshot
        if place is not None:
            return place.computed
        return self.stored.length - self.stored.pending if self.stored is not None else 0
