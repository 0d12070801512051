"""Grants that come and go while everybody is at work: when who might see whose secrets."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from aios_evals.siege.world import Agent


@dataclass(slots=True)
class _Lease:
    since: int
    until: float = float("inf")


@dataclass(slots=True, eq=False)
class Leases:
    """Which agent may read which other's space, by a clock that ticks at every question."""

    _clock: itertools.count[int] = field(default_factory=itertools.count)
    _held: dict[Agent, dict[Agent, list[_Lease]]] = field(default_factory=dict[Agent, dict[Agent, list[_Lease]]])

    def now(self) -> int:
        """A moment later than all before."""
        return next(self._clock)

    def begin(self, owner: Agent, to: Agent) -> None:
        """A grant is about to be asked for."""
        self._held.setdefault(to, {}).setdefault(owner, []).append(_Lease(self.now()))

    def end(self, owner: Agent, to: Agent) -> None:
        """The end of a grant was acknowledged."""
        leases = self._held[to][owner]
        leases[-1].until = self.now()
        del leases[:-8]  # no call is open for longer

    def seen_by(self, agent: Agent, began: int, ended: int) -> set[bytes]:
        """Canaries of others that a call of these moments may show."""
        return {
            canary
            for owner, leases in self._held.get(agent, {}).items()
            if any(lease.since <= ended and lease.until >= began for lease in leases)
            for canary in owner.own
        }
