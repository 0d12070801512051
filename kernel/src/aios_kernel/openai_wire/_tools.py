"""Tools and the choice among them, as Chat Completions (nested) and Responses (flat) spell them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aios_kernel.errors import InvalidRequest
from aios_kernel.openai_wire._reader import Reader, refused
from aios_kernel.syscalls import ToolSpec

MODES = frozenset({"auto", "none", "required"})
TOOL_INERT = frozenset({"strict"})
"""`strict` asks the server to hold the model to the schema; arguments are the model's own here, and the agent's
framework checks them."""


def read_tools(elements: Sequence[tuple[str, Any]], *, flat: bool = False) -> list[ToolSpec]:
    """The offered tools. `flat` is the spelling of the Responses API. Raises Unsupported for built-in tools."""
    tools: list[ToolSpec] = []
    for path, value in elements:
        tool = _read_tool(Reader(value, path), flat)
        if any(tool.name == other.name for other in tools):
            raise InvalidRequest(f'two tools are called "{tool.name}"')
        tools.append(tool)
    return tools


def _read_tool(outer: Reader, flat: bool) -> ToolSpec:
    kind = outer.needed("type")
    if kind != "function":
        raise refused(f'a tool of type "{kind}" ({outer.path})', fix="offer a tool of type function")
    inner = outer if flat else outer.child("function")
    if inner is None:
        raise InvalidRequest(f'the field "{outer.at("function")}" is missing')
    tool = ToolSpec(
        name=inner.needed("name"),
        description=inner.text("description") or "",
        parameters=inner.mapping("parameters") or {},
    )
    if not tool.name:
        raise InvalidRequest(f'the field "{inner.at("name")}" is empty')
    inner.end(TOOL_INERT)
    if not flat:
        outer.end()
    return tool


def read_tool_choice(value: Any, tools: Sequence[ToolSpec], *, flat: bool = False) -> str:
    """`auto`, `none`, `required` or the name of an offered tool."""
    if value is None:
        return "auto"
    choice = value if isinstance(value, str) else None
    if choice is None:
        return _named(Reader(value, "tool_choice"), tools, flat)
    if choice not in MODES:
        raise InvalidRequest(f'tool_choice must be auto, none, required or a function, not "{choice}"')
    if choice == "required" and not tools:
        raise InvalidRequest("tool_choice is required, but no tools are offered")
    return choice


def _named(outer: Reader, tools: Sequence[ToolSpec], flat: bool) -> str:
    kind = outer.needed("type")
    if kind != "function":
        raise refused(f'tool_choice of type "{kind}"', fix="choose auto, none, required or one function")
    inner = outer if flat else outer.child("function")
    if inner is None:
        raise InvalidRequest('the field "tool_choice.function" is missing')
    name = inner.needed("name")
    inner.end()
    if not flat:
        outer.end()
    if all(tool.name != name for tool in tools):
        raise InvalidRequest(f'tool_choice names the tool "{name}", which is not offered')
    if name in MODES:
        raise refused(f'choosing a tool called "{name}"', fix="rename the tool: the word is a mode of tool_choice")
    return name
