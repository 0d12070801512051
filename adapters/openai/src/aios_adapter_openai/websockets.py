"""Websockets do not pass `request`: inside a scope they are refused, so that no agent goes past the kernel."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from aios_adapters import Scope
from aios_adapters.patching import Patcher
from aios_kernel.errors import AdapterError, Unsupported


def refuse_in_scope(patcher: Patcher, module: str) -> None:
    """Patch `connect` of every class of a module. Raises AdapterError when there is none."""
    found = [
        cls
        for _, cls in inspect.getmembers(sys.modules[module], inspect.isclass)
        if cls.__module__ == module and "connect" in vars(cls)
    ]
    if not found:
        raise AdapterError(
            f"{module} no longer has a connect method", fix="aios doctor shows the tested versions; install one of them"
        )
    for cls in found:
        patcher.method(cls, "connect", _refuse, kind="detail")


def _refuse(scope: Scope, original: Any, resource: Any, /, *args: Any, **kwargs: Any) -> Any:
    raise Unsupported(
        f"{type(resource).__name__}.connect opens a websocket, which the kernel does not serve",
        agent=scope.agent,
        fix="use chat completions or responses, or connect outside of the decorated agent",
    )
