"""Tools that the kernel hosts, for the agent that is on: listed and called by name.

`aios.tools.call("weather", {"city": "Lisbon"})`; `acall` is its async form. A call that the kernel's death cuts off is
sent again to the next kernel under the same idempotency key, so that its effect happens once.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from aios_adapters._scope import required
from aios_kernel.errors import InvalidRequest, KernelUnavailable
from aios_kernel.syscalls import ToolInvoke, ToolList, ToolOutput, Tools, ToolSpec

_AWAY_S = 10.0
"""How long a kernel that went away may take to come back."""
_PAUSE_S = 0.1


def specs() -> list[ToolSpec]:
    """Name, description and JSON schema of every tool that the kernel hosts."""
    return required("tools.specs").call(ToolList(), Tools).tools


def call(
    name: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float | None = None, key: str | None = None
) -> str:
    """Run a tool; gives its text.

    Args:
        name: the tool's.
        arguments: by name; JSON values.
        timeout_s: seconds it may take, the wait for its place included; None: what the tool or the kernel says.
        key: makes two calls one, for a day: the second is answered like the first. None: a call of its own.

    Raises:
        EffectUnknown: the kernel died in the middle of it, and it must not be run again.
        ToolError: it failed, timed out (ToolTimeout) or found no place in time (ToolNotStarted).
    """
    scope, request = required("tools.call"), _request(name, arguments, timeout_s, key)
    gone_at = None
    while True:
        try:
            return scope.call(request, ToolOutput).content
        except KernelUnavailable:
            gone_at = gone_at or time.monotonic()
            if time.monotonic() - gone_at > _AWAY_S:
                raise
            time.sleep(_PAUSE_S)


async def acall(
    name: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float | None = None, key: str | None = None
) -> str:
    """Like `call`; cancelling the task cancels the call."""
    scope, request = required("tools.acall"), _request(name, arguments, timeout_s, key)
    gone_at = None
    while True:
        try:
            return (await scope.acall(request, ToolOutput)).content
        except KernelUnavailable:
            gone_at = gone_at or time.monotonic()
            if time.monotonic() - gone_at > _AWAY_S:
                raise
            await asyncio.sleep(_PAUSE_S)


def _request(name: str, arguments: Mapping[str, Any] | None, timeout_s: float | None, key: str | None) -> ToolInvoke:
    return ToolInvoke(name, encoded(name, arguments), timeout_s, key or uuid.uuid4().hex)


def encoded(name: str, arguments: Mapping[str, Any] | None) -> str:
    """A call's arguments as JSON. Raises InvalidRequest for values that are none."""
    try:
        return msgspec.json.encode(dict(arguments or {})).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the arguments of tool {name!a} are no JSON: {error}", fix="pass JSON values") from error
