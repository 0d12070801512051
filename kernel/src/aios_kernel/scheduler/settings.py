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


class ServerHints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[server_hints]`: what a model server is told beside the call. Strict servers refuse unknown fields."""

    priority: bool = False
    """`priority`: -1 interactive, 0 normal, 1 batch; lower is earlier (vLLM with `--scheduling-policy priority`)."""
    cache_salt: bool = False
    """`cache_salt`: keeps trust domains apart in the server's prefix cache (vLLM, SGLang)."""
    session_header: str = ""
    """A header with the name of the program's family, for routers that keep sessions together; empty: none."""
    agent_hints: bool = False
    """`nvext.agent_hints`: priority (the higher the earlier) and expected length (NVIDIA Dynamo)."""
    slice_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Ask for so many tokens at once and for the rest with the answer's beginning as a prefix
    (`continue_final_message`: vLLM, SGLang); then policies may also take calls off the server. 0: whole answers."""

    def __post_init__(self) -> None:
        """Raises ValueError for what is no name of a header."""
        if not all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in self.session_header):
            raise ValueError("session_header is no name of a header")
