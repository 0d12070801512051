"""What a server is told of a call beside the call itself, as far as it is switched on."""

from __future__ import annotations

from typing import Any

from aios_kernel.engine.protocol import Caller
from aios_kernel.scheduler.settings import ServerHints
from aios_kernel.syscalls import LlmChat, Priority

_LOWER_FIRST: dict[Priority, int] = {"interactive": -1, "normal": 0, "batch": 1}


def hint_fields(hints: ServerHints, caller: Caller, call: LlmChat, salt: bytes) -> dict[str, Any]:
    """Fields of the request's body."""
    fields: dict[str, Any] = {}
    if hints.priority:
        fields["priority"] = _LOWER_FIRST[caller.priority]
    if hints.cache_salt and salt:
        fields["cache_salt"] = salt.hex()
    if hints.agent_hints:
        told = {"priority": -_LOWER_FIRST[caller.priority], "osl": call.sampling.max_tokens}
        fields["nvext"] = {"agent_hints": {name: value for name, value in told.items() if value is not None}}
    return fields


def hint_headers(hints: ServerHints, caller: Caller) -> dict[str, str]:
    """Headers of the request. The kernel's ids are plain, but a caller may have chosen others."""
    if not hints.session_header:
        return {}
    family = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in caller.family)
    return {hints.session_header: family.strip() or "program"}
