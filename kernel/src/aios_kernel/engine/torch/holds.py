"""Wishes to keep cached blocks: whose they are, how much they matter, and until when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aios_kernel.engine.torch.eviction import DEFAULT, NEVER, Standing


@dataclass(frozen=True, slots=True, eq=False)
class Hold:
    """See `aios_kernel.engine.protocol.Hold`.

    Attributes:
        blocks: number and generation of each block.
        priority: of the blocks among the idle ones; unheld blocks have 0.
        expires_s: when the wish ends, in seconds of the pool's clock.
        pinned: whether it holds a reference on each block, so that none can be evicted.
        n_tokens: tokens of the prefix that it covers.
    """

    blocks: tuple[tuple[int, int], ...]
    priority: int
    expires_s: float
    pinned: bool
    n_tokens: int


class HoldBook:
    """The holds of each block."""

    def __init__(self) -> None:
        self._holds: dict[int, list[Hold]] = {}

    def add(self, hold: Hold) -> None:
        """Book a hold on all its blocks."""
        for block, _ in hold.blocks:
            self._holds.setdefault(block, []).append(hold)

    def remove(self, hold: Hold) -> list[int]:
        """Take a hold out; give the blocks that it was still booked on."""
        return [block for block, _ in hold.blocks if self._strike(block, [hold])]

    def strike_expired(self, block: int, now_s: float) -> None:
        """Forget the holds of a block that have expired: it is used again, whatever they said."""
        self._strike(block, [hold for hold in self._holds.get(block, ()) if hold.expires_s <= now_s])

    def forget(self, block: int) -> None:
        """Forget all holds of a block whose content is gone."""
        self._holds.pop(block, None)

    def standing(self, block: int, now_s: float) -> Standing | None:
        """How much a block is wanted now; None when it was held and every hold has expired."""
        holds = self._holds.get(block)
        if not holds:
            return DEFAULT
        live = [hold for hold in holds if hold.expires_s > now_s]
        if not live:
            return None
        until = min((hold.expires_s for hold in live), default=NEVER)
        return Standing(max(hold.priority for hold in live), until)

    def _strike(self, block: int, gone: Iterable[Hold]) -> bool:
        holds = self._holds.get(block, [])
        found = False
        for hold in gone:
            if hold in holds:
                holds.remove(hold)
                found = True
        if not holds:
            self._holds.pop(block, None)
        return found
