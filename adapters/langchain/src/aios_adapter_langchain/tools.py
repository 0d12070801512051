"""Tools: every `BaseTool.run` and `arun` passes the kernel once, at the moment when the tool's own code would run.

`run` is LangChain's part (callbacks, checking the arguments, `handle_tool_error`) and stays as it is; it only notes
which call is on. `_run` and `_arun` are the tool's own code: they run under the kernel's grant. So a refusal takes the
road of any `ToolException`, and what the tool itself raises is untouched.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from langchain_core.messages import ToolMessage
from langchain_core.tools.base import BaseTool, ToolException

from aios_adapter_langchain.identity import caller
from aios_adapters import Scope
from aios_adapters.patching import Patcher
from aios_kernel.errors import AccessDenied, AiosError, ToolError, ToolTimeout

_MOST_CHARACTERS = 500_000
"""Arguments are shown to the kernel, not sent through it: longer ones are cut."""
_encoder = json.JSONEncoder(default=str, allow_nan=False, ensure_ascii=False)


class ToolDenied(AccessDenied, ToolException):
    """The kernel refused the tool."""


class ToolFailed(ToolError, ToolException):
    """The kernel could not let the tool run."""


class ToolOverdue(ToolTimeout, ToolException):
    """The tool did not end within its limit."""


class _Call:
    """One call of a tool, from `run` to `_run`."""

    __slots__ = ("given", "id", "refusal", "shown", "tool")

    def __init__(self, tool: BaseTool, tool_input: Any, id: str | None) -> None:
        self.tool = tool
        self.given = tool_input
        self.shown: dict[str, Any] | None = None
        """The arguments without what LangGraph injects, once LangChain has told them apart."""
        self.id = id
        self.refusal: AiosError | None = None

    def arguments(self) -> str:
        """The call's arguments as JSON; a bare text under LangChain's name for it."""
        return _json_of(self._shown() if isinstance(self.given, dict) else {"__arg1": self.given})

    def _shown(self) -> Any:
        tool: Any = self.tool
        return tool._filter_injected_args(self.given) if self.shown is None else self.shown

    def refused(self, error: AiosError) -> AiosError:
        """The kernel's refusal as LangChain's tool error."""
        kind = ToolDenied if isinstance(error, AccessDenied) else ToolFailed
        kind = ToolOverdue if isinstance(error, ToolTimeout) else kind
        self.refusal = kind(error.message, agent=error.agent, syscall=error.syscall, fix=error.fix)
        return self.refusal

    def answer(self, error: AiosError) -> ToolMessage:
        """What the model is told about a refusal that nobody handled. Raises it for a call that no model made."""
        if error is not self.refusal or self.id is None:
            raise error
        return ToolMessage(str(error), name=self.tool.name, tool_call_id=self.id, status="error")


_on: ContextVar[_Call | None] = ContextVar("aios_langchain_tool", default=None)


def install(patcher: Patcher) -> None:
    """Hook the tools' outer and inner methods."""
    wrappers = {
        "run": _run_outer,
        "arun": _arun_outer,
        "_run": _run_inner,
        "_arun": _arun_inner,
        "_filter_injected_args": _filter,
    }
    patcher.leaves(BaseTool, wrappers, late="__pydantic_init_subclass__")


def _run_outer(
    scope: Scope, original: Callable[..., Any], tool: BaseTool, /, tool_input: Any, *args: Any, **kw: Any
) -> Any:
    call = _Call(tool, tool_input, kw.get("tool_call_id"))
    token = _on.set(call)
    try:
        return original(tool, tool_input, *args, **kw)
    except (ToolDenied, ToolFailed, ToolOverdue) as error:
        return call.answer(error)
    finally:
        _on.reset(token)


async def _arun_outer(
    scope: Scope, original: Callable[..., Any], tool: BaseTool, /, tool_input: Any, *args: Any, **kw: Any
) -> Any:
    call = _Call(tool, tool_input, kw.get("tool_call_id"))
    token = _on.set(call)
    try:
        return await original(tool, tool_input, *args, **kw)
    except (ToolDenied, ToolFailed, ToolOverdue) as error:
        return call.answer(error)
    finally:
        _on.reset(token)


def _filter(scope: Scope, original: Callable[..., Any], tool: BaseTool, /, *args: Any, **kwargs: Any) -> Any:
    """Keep what LangChain finds out about the arguments: doing it again would cost more than asking the kernel."""
    shown = original(tool, *args, **kwargs)
    call = _on.get()
    if call is not None and call.tool is tool:
        call.shown = shown
    return shown


def _run_inner(scope: Scope, original: Callable[..., Any], tool: BaseTool, /, *args: Any, **kwargs: Any) -> Any:
    call = _on.get()
    if call is None or call.tool is not tool:  # the second half of a call that has its grant, or no call at all
        return original(tool, *args, **kwargs)
    own: list[BaseException] = []

    def run() -> Any:
        try:
            return original(tool, *args, **kwargs)
        except BaseException as error:
            own.append(error)
            raise

    token = _on.set(None)
    try:
        return caller(scope).run_tool(tool.name, call.arguments(), run, call_id=call.id)
    except (AccessDenied, ToolError) as error:
        if error in own:
            raise
        raise call.refused(error) from error
    finally:
        _on.reset(token)


async def _arun_inner(scope: Scope, original: Callable[..., Any], tool: BaseTool, /, *args: Any, **kwargs: Any) -> Any:
    call = _on.get()
    if call is None or call.tool is not tool:
        return await original(tool, *args, **kwargs)
    own: list[BaseException] = []

    async def run() -> Any:
        try:
            return await original(tool, *args, **kwargs)
        except BaseException as error:
            own.append(error)
            raise

    token = _on.set(None)
    try:
        return await caller(scope).arun_tool(tool.name, call.arguments(), run, call_id=call.id)
    except (AccessDenied, ToolError) as error:
        if error in own:
            raise
        raise call.refused(error) from error
    finally:
        _on.reset(token)


def _json_of(shown: Any) -> str:
    try:
        text = _encoder.encode(shown)
        text.encode()
    except (TypeError, ValueError):  # odd keys, cycles, NaN, half a surrogate: the tool may take them all the same
        text = ""
    if 0 < len(text) <= _MOST_CHARACTERS:
        return text
    return json.dumps({"__arg1": str(shown)[:_MOST_CHARACTERS].encode(errors="replace").decode()})
