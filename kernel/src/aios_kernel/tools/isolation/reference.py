"""Names of what runs in another process: functions to import there, commands that tell of earlier calls."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from aios_kernel.errors import ToolError, Unsupported
from aios_kernel.tools.hosted import EffectStatus, Launch


@dataclass(frozen=True, slots=True)
class Reference:
    """A function as `package.module:function`, which this process does not import."""

    name: str

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Raise ToolError: it is called in a process of its own or not at all."""
        raise ToolError(f"{self.name} was not confined")


@dataclass(frozen=True, slots=True)
class StatusCommand:
    """A program that says whether the call of a key was done."""

    launch: Callable[[str], Launch]

    def __call__(self, key: str) -> EffectStatus:
        """Raise ToolError: it runs in a process of its own or not at all."""
        raise ToolError("the status command was not confined")


def reference_of(tool: str, function: Callable[..., Any]) -> str:
    """`package.module:function` of a function.

    Raises:
        Unsupported: another process cannot find it by its name.
    """
    if isinstance(function, Reference):
        return function.name
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    found: Any = None
    if module and module != "__main__":
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part, None)
    if found is not function:
        raise Unsupported(
            f'tool "{tool}" cannot run in a process of its own: {name or function!r} cannot be imported by its name',
            fix="make it a function at the top of a module",
        )
    return f"{module}:{name}"
