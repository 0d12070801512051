"""Scopes travel with messages: a handler runs in the scope of whoever sent the message that it handles.

The runtime handles messages in tasks of its own. Their context is that of the task that called `start()`, perhaps
before any agent was on, perhaps inside another agent's run; so each envelope remembers the scope it was sent from.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from aios_adapters._scope import current, suspended
from aios_adapters.patching import Patcher

_SCOPE = "_aios_scope"


def install(patcher: Patcher) -> None:
    """Hook the single-threaded runtime, on which all teams run unless they are given another."""
    from autogen_core import _single_threaded_agent_runtime as module  # pyright: ignore[reportPrivateUsage]

    for envelope in (module.SendMessageEnvelope, module.PublishMessageEnvelope):
        patcher.replace(envelope, "__init__", _remembering(envelope.__init__))
    runtime = module.SingleThreadedAgentRuntime
    for name in ("_process_send", "_process_publish"):
        patcher.replace(runtime, name, _in_senders_scope(getattr(runtime, name)))


def _remembering(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        setattr(self, _SCOPE, current())

    return init


def _in_senders_scope(original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(original)
    async def process(self: Any, message_envelope: Any) -> None:
        scope = getattr(message_envelope, _SCOPE, None)
        with suspended() if scope is None else scope.on():
            await original(self, message_envelope)

    return process
