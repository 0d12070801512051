"""Pieces of a Chat Completions request by themselves, for frameworks that speak in them (`bind_tools`, ...)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aios_kernel.openai_wire._format import read_format
from aios_kernel.openai_wire._messages import read_messages
from aios_kernel.openai_wire._reader import Reader
from aios_kernel.openai_wire._tools import read_tool_choice, read_tools
from aios_kernel.syscalls import Message, ToolSpec


def chat_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages in OpenAI's spelling. Raises InvalidRequest, or Unsupported for what a text model cannot read."""
    return read_messages([(f"messages[{index}]", message) for index, message in enumerate(messages)])


def chat_tools(tools: Sequence[Mapping[str, Any]]) -> list[ToolSpec]:
    """Tools in OpenAI's spelling, `{"type": "function", "function": {...}}`."""
    return read_tools([(f"tools[{index}]", tool) for index, tool in enumerate(tools)])


def chat_tool_choice(choice: str | Mapping[str, Any] | None, tools: Sequence[ToolSpec]) -> str:
    """`auto`, `none`, `required` or the name of one of `tools`."""
    return read_tool_choice(choice, tools)


def chat_schema(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The JSON schema of a `response_format`: None for plain text, `{}` for any JSON object."""
    return read_format(None if response_format is None else Reader(response_format, "response_format"))
