"""The tables of the configuration that are about scheduling."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec


class Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an agent (over all its programs) or a group may use; None: as much as there is."""

    tokens_per_s: float | None = None
    """Tokens computed for it, prompt and answer, on average."""
    burst_tokens: float | None = None
    """At once after a pause; None: a second's worth."""
    total_tokens: int | None = None
    calls: int | None = None
    """Calls on the model at once."""

    def __post_init__(self) -> None:
        """Raises ValueError for what would stop everything, or means nothing."""
        for name in ("tokens_per_s", "burst_tokens", "total_tokens", "calls"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be greater than 0")
        if self.burst_tokens is not None and self.tokens_per_s is None:
            raise ValueError("burst_tokens needs tokens_per_s")


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[limits]` of the configuration."""

    agents: dict[str, Limit] = {}
    groups: dict[str, Limit] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.agents or self.groups)


class GroupPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one group's calls are ordered, and its share of the engine beside the other groups."""

    policy: str
    options: dict[str, float | int | str | bool] = {}
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0
