"""Tools: every call of a tool or of a workbench's tool runs under a grant of the kernel, and is counted once.

`AccessDenied` and `ToolTimeout` come back as AutoGen's tool errors: a `StaticWorkbench` makes one of whatever its tools
raise, for the other workbenches it is made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import functools
import inspect
import json
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import aclosing
from typing import Any

from autogen_core.tools import (
    BaseStreamTool,
    BaseTool,
    FunctionTool,
    StaticWorkbench,
    TextResultContent,
    ToolResult,
    Workbench,
)
from autogen_core.tools._workbench import StreamWorkbench  # not exported, though workbenches may derive from it

from aios_adapters._scope import Scope
from aios_adapters.patching import Patcher
from aios_kernel import errors
from aios_kernel.syscalls import Ok, ToolBegin, ToolEnd, ToolGrant

_granted: contextvars.ContextVar[bool] = contextvars.ContextVar("aios_autogen_granted", default=False)
"""A workbench's call has been granted, and the tool that it leads to must not be counted again."""


def install(patcher: Patcher) -> None:
    """Hook every tool and workbench, present and future."""
    patcher.leaves(BaseTool, {"run_json": _run_json})
    patcher.method(FunctionTool, "run", _run_function)
    patcher.leaves(BaseStreamTool, {"run_json_stream": _run_json_stream})
    patcher.leaves(Workbench, {"call_tool": _call_tool})
    patcher.leaves(StreamWorkbench, {"call_tool_stream": _call_tool_stream})


async def _run_json(
    scope: Scope, original: Callable[..., Any], tool: Any, /, args: Mapping[str, Any], *rest: Any, **named: Any
) -> Any:
    run = functools.partial(original, tool, args, *rest, **named)
    if _granted.get() or not _is_outermost(tool, "run_json", original):
        with _marked(False):
            return await run()
    return await scope.arun_tool(tool.name, _json(args), run, call_id=_argument("call_id", 1, rest, named))


async def _run_function(
    scope: Scope, original: Callable[..., Any], tool: Any, /, args: Any, *rest: Any, **named: Any
) -> Any:
    """A plain function runs in an executor's thread, which knows no context: it takes this one along."""
    if not inspect.iscoroutinefunction(tool._func):
        function, tool = tool._func, copy.copy(tool)
        tool._func = functools.partial(contextvars.copy_context().run, function)
    return await original(tool, args, *rest, **named)


async def _run_json_stream(
    scope: Scope, original: Callable[..., Any], tool: Any, /, args: Mapping[str, Any], *rest: Any, **named: Any
) -> AsyncGenerator[Any, None]:
    source = original(tool, args, *rest, **named)
    if not _granted.get() and _is_outermost(tool, "run_json_stream", original):
        call = ToolBegin(tool.name, _json(args), _argument("call_id", 1, rest, named))
        source = _under_grant(scope, call, source, granted=False)
    else:
        source = _stepped(source, granted=False)
    async with aclosing(source) as items:
        async for item in items:
            yield item


async def _call_tool(
    scope: Scope, original: Callable[..., Any], workbench: Any, /, name: str, *rest: Any, **named: Any
) -> ToolResult:
    async def run() -> ToolResult:
        with _marked(True):
            return await original(workbench, name, *rest, **named)

    if _leads_to_tools(original) or _granted.get():
        return await original(workbench, name, *rest, **named)
    arguments = _json(_argument("arguments", 0, rest, named))
    try:
        return await scope.arun_tool(name, arguments, run, call_id=_argument("call_id", 2, rest, named))
    except (errors.AccessDenied, errors.ToolError) as error:
        return _tool_error(name, error)


async def _call_tool_stream(
    scope: Scope, original: Callable[..., Any], workbench: Any, /, name: str, *rest: Any, **named: Any
) -> AsyncGenerator[Any, None]:
    source = original(workbench, name, *rest, **named)
    if not (_leads_to_tools(original) or _granted.get()):
        arguments = _json(_argument("arguments", 0, rest, named))
        call = ToolBegin(name, arguments, _argument("call_id", 2, rest, named))
        source = _under_grant(scope, call, source, granted=True)
    try:
        async with aclosing(source) as items:
            async for item in items:
                yield item
    except (errors.AccessDenied, errors.ToolError) as error:
        yield _tool_error(name, error)


async def _under_grant(
    scope: Scope, call: ToolBegin, source: AsyncGenerator[Any, None], *, granted: bool
) -> AsyncGenerator[Any, None]:
    """A tool's stream between `tool.begin` and `tool.end`; the time limit holds for the whole of it."""
    async with aclosing(_stepped(source, granted=granted)) as items:
        grant = await scope.acall(call, ToolGrant)
        ends_at = asyncio.get_running_loop().time() + grant.timeout_s
        end = ToolEnd(grant=grant.grant)
        try:
            while True:
                limit = asyncio.timeout_at(ends_at)
                try:
                    async with limit:
                        item = await anext(items)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    raise (scope.late(call.name, grant) if limit.expired() else error) from None
                yield item
        except BaseException as error:
            end = ToolEnd(grant=grant.grant, ok=False, error=f"{type(error).__name__}: {error}"[:500])
            raise
        finally:
            with contextlib.suppress(errors.KernelUnavailable):  # a kernel that is gone holds no grant
                await scope.acall(end, Ok)


async def _stepped(source: AsyncGenerator[Any, None], *, granted: bool) -> AsyncGenerator[Any, None]:
    """The stream with the mark set around each step, never across a yield."""
    async with aclosing(source) as items:
        while True:
            with _marked(granted):
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            yield item


@contextlib.contextmanager
def _marked(granted: bool) -> Generator[None]:
    token = _granted.set(granted)
    try:
        yield
    finally:
        _granted.reset(token)


def _is_outermost(target: Any, name: str, original: Callable[..., Any]) -> bool:
    """Whether `original` is the method that a call on the object meets first, and not one reached by `super()`."""
    return getattr(getattr(type(target), name), "__aios_original__", None) is original


def _leads_to_tools(original: Callable[..., Any]) -> bool:
    """The static workbenches call their tools' `run_json`, where the call is counted and its error becomes a result."""
    return original.__module__ == StaticWorkbench.__module__


def _argument(name: str, position: int, rest: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    return named.get(name) if len(rest) <= position else rest[position]


def _json(arguments: Mapping[str, Any] | None) -> str:
    return json.dumps(dict(arguments or {}), default=str)


def _tool_error(name: str, error: errors.AiosError) -> ToolResult:
    return ToolResult(name=name, result=[TextResultContent(content=str(error))], is_error=True)
