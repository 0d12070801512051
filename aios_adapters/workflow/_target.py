"""What a step runs: any callable, its parameters filled from JSON values by name and annotation."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from aios_adapters._sync import in_thread
from aios_adapters.workflow._values import converted
from aios_kernel.errors import InvalidRequest

_KEYWORD = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


class Target:
    """A callable, sync or async, with what it takes and gives."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Read its signature. Raises InvalidRequest for parameters that cannot be filled by name."""
        self.function = function
        parameters = inspect.signature(function).parameters.values()
        self.open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        named = [
            p for p in parameters if p.kind not in {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
        ]
        for parameter in named:
            if parameter.kind not in _KEYWORD:
                raise InvalidRequest(
                    f'the parameter "{parameter.name}" of {function!r} is positional only',
                    fix="a step's parameters are filled by name: remove the `/` from its signature",
                )
        self.names = [p.name for p in named]
        self.required = [p.name for p in named if p.default is inspect.Parameter.empty]
        self._hints = _hints(function)

    async def call(self, values: Mapping[str, Any]) -> Any:
        """Call it with those values that it takes; what is synchronous gets a thread of its own."""
        taken = {key: self._converted(key, value) for key, value in values.items() if self.open or key in self.names}
        if _is_async(self.function):
            return await self.function(**taken)
        result = await in_thread(functools.partial(self.function, **taken))
        return await result if inspect.isawaitable(result) else result

    def output(self, value: Any) -> Any:
        """A JSON value as the type that the function is annotated to return."""
        return self._converted("return", value)

    def _converted(self, name: str, value: Any) -> Any:
        what = f'"{name}" of {getattr(self.function, "__name__", self.function)}'
        return converted(value, self._hints.get(name, Any), what)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - a callable object's own method is wanted


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function if inspect.isroutine(function) else type(function).__call__)
    except (NameError, TypeError):  # annotations that cannot be resolved here (local classes): values stay plain JSON
        return {}
