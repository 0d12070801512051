"""Residency of contexts: queued (a prompt only), resident (KV in the pool), swapped (snapshot in host memory)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aios_kernel.chat.generation import Generation
from aios_kernel.engine.protocol import Context, Engine, Snapshot
from aios_kernel.scheduler.protocol import Residency


@dataclass(slots=True)
class Held:
    """A generation and its context, in exactly one of the three places."""

    generation: Generation
    context: Context | None = None
    snapshot: Snapshot | None = None

    @property
    def residency(self) -> Residency:
        """Where the context is."""
        if self.context is not None:
            return Residency.RESIDENT
        return Residency.SWAPPED if self.snapshot is not None else Residency.QUEUED

    @property
    def length(self) -> int:
        """Tokens of the sequence, prompt and answer."""
        place = self.context or self.snapshot
        return len(place.tokens) if place is not None else len(self.generation.order.prompt)

    @property
    def pending(self) -> int:
        """Tokens without KV."""
        place = self.context or self.snapshot
        return len(place.tokens) - place.computed if place is not None else len(self.generation.order.prompt)


class ContextManager:
    """Moves contexts between the places. Driven by the dispatcher's thread; KvExhausted passes through unchanged."""

    def __init__(self, engine: Engine[Any, Any]) -> None:
        self._engine = engine
        self.snapshots = 0

    def admit(self, held: Held) -> None:
        """Give a queued generation a context; its cached prefix is attached."""
        order = held.generation.order
        context = self._engine.open(order.prompt, sampling=order.sampling, grammar=order.grammar, salt=order.salt)
        held.context = context
        held.generation.cached = context.cached

    def swap_out(self, held: Held) -> None:
        """Snapshot a resident context to host memory and free its blocks."""
        assert held.context is not None
        held.snapshot = self._engine.snapshot(held.context)
        held.context = None
        self.snapshots += 1

    def swap_in(self, held: Held) -> None:
        """Restore a snapshot; it continues exactly."""
        assert held.snapshot is not None
        held.context = self._engine.restore(held.snapshot)
        held.snapshot = None

    def drop(self, held: Held) -> None:
        """Free whatever the generation holds."""
        if held.context is not None:
            self._engine.release(held.context)
        held.context = held.snapshot = None
