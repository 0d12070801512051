"""The MCP server itself, over whatever road syscalls take to the kernel."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Protocol, TypeAlias, final

import msgspec
from mcp.server import Server, ServerRequestContext
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

from aios_kernel.errors import AiosError, NotFound
from aios_kernel.mcp_front.own_tools import OWN_TOOLS, OwnTool, plain
from aios_kernel.syscalls import Result, Syscall, ToolInvoke, ToolList, ToolOutput, Tools, ToolSpec

Context: TypeAlias = ServerRequestContext[Any, Any]

_SLASH: Final = re.compile("/")
_OTHERS: Final = re.compile("[^A-Za-z0-9_-]")
_LONGEST: Final = 64
"""What the APIs of models take as a tool's name."""


class Ask(Protocol):
    """Runs a syscall in the caller's name; raises the AiosError that it failed with. Cancelled, it cancels it."""

    def __call__(self, call: Syscall, /) -> Awaitable[Result]:
        """Give its result."""
        ...


def mcp_server(asker: Callable[[Context], Ask]) -> Server[Any]:
    """A server whose tools are the kernel's.

    Args:
        asker: gives the road of a request: as whom it asks.
    """
    front = _Front(asker)
    return Server(
        "aios",
        version=importlib.metadata.version("aios-kernel"),
        instructions="Memory and versioned files that outlive the run, and the tools that the aios kernel hosts.",
        get_tool_input_schema=lambda name: None,  # no argument goes into headers: no need to list the tools for that
        on_list_tools=front.list_tools,
        on_call_tool=front.call_tool,
    )


def public_names(specs: Iterable[ToolSpec]) -> dict[str, str]:
    """Names for hosted tools that every client takes: letters, digits, `_` and `-`; by them the kernel's names.

    A slash becomes two underscores. Names that would be one get a piece of their hash, so that no tool can pass for
    another one, or for one of the kernel's own.
    """
    wished = {spec.name: _OTHERS.sub("_", _SLASH.sub("__", spec.name)) for spec in specs}
    taken = Counter([*wished.values(), *OWN_TOOLS])
    return {
        public if taken[public] == 1 and len(public) <= _LONGEST else _hashed(name, public): name
        for name, public in wished.items()
    }


def _hashed(name: str, public: str) -> str:
    return f"{public[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@final
class _Front:
    """The two methods that clients call."""

    def __init__(self, asker: Callable[[Context], Ask]) -> None:
        self._asker = asker
        self._names: Mapping[str, str] = {}

    async def list_tools(self, context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        """The kernel's own tools, then those that it hosts."""
        specs = await self._specs(self._asker(context))
        hosted = [
            Tool(name=public, description=specs[name].description, input_schema=_schema(specs[name]))
            for public, name in self._names.items()
        ]
        return ListToolsResult(tools=[*map(_own, OWN_TOOLS.values()), *hosted])

    async def call_tool(self, context: Context, params: CallToolRequestParams) -> CallToolResult:
        """Run one; a syscall that fails is a result with its error, which the model can read."""
        ask, arguments = self._asker(context), params.arguments or {}
        try:
            own = OWN_TOOLS.get(params.name)
            if own is not None:
                return _shown(await ask(own.syscall(arguments)))
            name = await self._hosted(ask, params.name)
            output = await ask(ToolInvoke(name=name, arguments=json.dumps(arguments)))
            assert isinstance(output, ToolOutput)
            marked = {"aios/untrusted": True} if output.untrusted else None  # a client may want to know
            return CallToolResult(content=[TextContent(text=output.content)], _meta=marked)
        except AiosError as error:
            return CallToolResult(content=[TextContent(text=str(error))], is_error=True)

    async def _hosted(self, ask: Ask, public: str) -> str:
        if public not in self._names:
            await self._specs(ask)
        if public not in self._names:
            raise NotFound(f"the kernel has no tool {public[:80]!a}", fix="tools/list names the tools")
        return self._names[public]

    async def _specs(self, ask: Ask) -> dict[str, ToolSpec]:
        tools = await ask(ToolList())
        assert isinstance(tools, Tools)
        self._names = public_names(tools.tools)
        return {spec.name: spec for spec in tools.tools}


def _own(tool: OwnTool) -> Tool:
    hints = ToolAnnotations(
        read_only_hint=not tool.changes, destructive_hint=tool.destroys, idempotent_hint=not tool.changes,
        open_world_hint=False,
    )  # fmt: skip
    return Tool(name=tool.name, description=tool.description, input_schema=tool.parameters, annotations=hints)


def _schema(spec: ToolSpec) -> dict[str, Any]:
    return {"type": "object"} | spec.parameters


def _shown(result: Result) -> CallToolResult:
    found = plain(result)
    text = found.get("text") if "version" in found and "path" in found else None
    content = text if isinstance(text, str) else msgspec.json.encode(found).decode()
    return CallToolResult(content=[TextContent(text=content)], structured_content=found)
