"""LangChain's messages in the spelling of Chat Completions; `aios_kernel.openai_wire` reads them from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from aios_kernel.errors import Unsupported

_REMARKS = frozenset(
    {
        # what the model thought on the way to an earlier answer
        "reasoning", "reasoning_content", "thinking", "redacted_thinking",
        # tool calls: `AIMessage.tool_calls` has them
        "tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "function_call", "input_json_delta",
    }
)  # fmt: skip
"""Content blocks of an earlier answer that are no text of it."""


def wire_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Chat Completions messages. Raises Unsupported for a kind of message that no model reads."""
    return [_wire_message(message) for message in messages]


def _wire_message(message: BaseMessage) -> dict[str, Any]:
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": _content(message)}
    if isinstance(message, HumanMessage):
        return {"role": "user", "content": _content(message)}
    if isinstance(message, AIMessage):
        return {"role": "assistant", "content": _content(message), "tool_calls": _calls(message)}
    if isinstance(message, ToolMessage):
        wire = {"role": "tool", "content": _content(message), "tool_call_id": message.tool_call_id}
        return {**wire, "name": message.name}
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": _content(message)}
    if isinstance(message, FunctionMessage):  # of the API before tool calls, which had no ids
        return {"role": "tool", "content": _content(message), "tool_call_id": message.name, "name": message.name}
    raise Unsupported(f"a {type(message).__name__} cannot be sent to a model", fix="send messages of LangChain's kinds")


def _content(message: BaseMessage) -> str | list[dict[str, Any]]:
    """Text as it is, and blocks one by one: the wire's reader refuses images, audio and files by name."""
    if isinstance(message.content, str):
        return message.content
    blocks = [{"type": "text", "text": block} if isinstance(block, str) else block for block in message.content]
    return [_part(block) for block in blocks if not (isinstance(message, AIMessage) and _is_remark(block))]


def _part(block: dict[str, Any]) -> dict[str, Any]:
    if block.get("type") in {"text", "input_text", "output_text"} and isinstance(block.get("text"), str):
        return {"type": "text", "text": block["text"]}
    return {"type": "unknown", **block}


def _is_remark(block: dict[str, Any]) -> bool:
    return block.get("type") in _REMARKS


def _calls(message: AIMessage) -> list[dict[str, Any]]:
    calls = [(call["id"], call["name"], json.dumps(call["args"], default=str)) for call in message.tool_calls]
    calls += [(call["id"], call["name"] or "", call["args"] or "") for call in message.invalid_tool_calls]
    return [
        {"id": id or f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (id, name, arguments) in enumerate(calls)
    ]
