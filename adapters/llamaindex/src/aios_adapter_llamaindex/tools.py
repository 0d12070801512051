"""Tools: every call passes the kernel once, as `tool.begin` and `tool.end`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Generator
from contextvars import ContextVar
from typing import Any

import msgspec
from llama_index.core.bridge.pydantic import ValidationError
from llama_index.core.tools.function_tool import FunctionTool
from llama_index.core.tools.types import AsyncBaseTool, BaseTool, BaseToolAsyncAdapter, ToolOutput
from llama_index.core.workflow import Context

from aios_adapters import Scope
from aios_adapters.patching import Patcher
from aios_kernel.errors import InvalidRequest

_running: ContextVar[BaseTool | None] = ContextVar("aios_llamaindex_tool", default=None)
"""The tool whose call has its grant: its `acall` may go through its own `call`, which is the same call."""


def install(patcher: Patcher) -> None:
    """Take the calls of all tool classes, present and future."""
    patcher.leaves(BaseTool, {"__call__": _call_plain})
    patcher.leaves(AsyncBaseTool, {"call": _call, "acall": _acall})


def _call_plain(scope: Scope, original: Any, tool: BaseTool, /, *args: Any, **kwargs: Any) -> ToolOutput:
    # An AsyncBaseTool's `__call__` ends in its `call`.
    if isinstance(tool, AsyncBaseTool):
        return original.__get__(tool)(*args, **kwargs)
    return _call(scope, original, tool, *args, **kwargs)


def _call(scope: Scope, original: Any, tool: BaseTool, /, *args: Any, **kwargs: Any) -> ToolOutput:
    bound = original.__get__(tool)
    if _is_granted(tool):
        return bound(*args, **kwargs)

    def run() -> ToolOutput:
        _check(scope, tool, args, kwargs)
        with _granted(tool):
            return bound(*args, **kwargs)

    return scope.run_tool(tool.metadata.get_name(), _arguments(tool, args, kwargs), run)


async def _acall(scope: Scope, original: Any, tool: BaseTool, /, *args: Any, **kwargs: Any) -> ToolOutput:
    bound = original.__get__(tool)
    if _is_granted(tool):
        return await bound(*args, **kwargs)

    async def run() -> ToolOutput:
        _check(scope, tool, args, kwargs)
        with _granted(tool):
            return await bound(*args, **kwargs)

    return await scope.arun_tool(tool.metadata.get_name(), _arguments(tool, args, kwargs), run)


def _is_granted(tool: BaseTool) -> bool:
    """Whether this call belongs to one that has its grant, or to a tool behind an adapter, which asks for its own."""
    return isinstance(tool, BaseToolAsyncAdapter) or _running.get() is tool


@contextlib.contextmanager
def _granted(tool: BaseTool) -> Generator[None]:
    token = _running.set(tool)
    try:
        yield
    finally:
        _running.reset(token)


def _check(scope: Scope, tool: BaseTool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse arguments that do not fit the tool's schema, which the framework shows the model and then forgets.

    What fits is passed on as it came: nothing is converted.
    """
    schema = tool.metadata.fn_schema
    if scope.passthrough or not isinstance(tool, FunctionTool) or schema is None:
        return
    try:
        schema.model_validate({**tool.partial_params, **_by_name(tool, args), **kwargs})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise InvalidRequest(
            f'the arguments do not fit the schema of tool "{tool.metadata.get_name()}": {wrong}',
            agent=scope.agent,
            syscall="tool.begin",
            fix="call it with arguments that do",
        ) from None


def _arguments(tool: BaseTool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The call's arguments as JSON text; positional ones by name, and without the workflow's context."""
    named = {**_by_name(tool, args), **kwargs}
    told = {name: value for name, value in named.items() if not isinstance(value, Context)}
    return msgspec.json.encode(told, enc_hook=str).decode()


def _by_name(tool: BaseTool, args: tuple[Any, ...]) -> dict[str, Any]:
    if not args:
        return {}
    function: Any = tool.__call__
    if isinstance(tool, FunctionTool):
        function = tool.real_fn
    elif isinstance(tool, AsyncBaseTool):
        function = tool.call
    try:
        return dict(inspect.signature(function).bind_partial(*args).arguments)
    except (TypeError, ValueError):  # more arguments than the tool takes: it will say so itself
        return {"args": list(args)}
