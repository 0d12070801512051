"""LlamaIndex's messages in the ABI's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import BaseModel

from aios_kernel.errors import Unsupported
from aios_kernel.syscalls import Message, ToolCall

_ROLES: dict[str, Literal["system", "user", "assistant", "tool"]] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}
_UNSAID = (ThinkingBlock, CachePoint, ToolCallBlock)
"""Blocks without text for the model: earlier thoughts, hints for a cache, and tool calls, which have a field."""


def kernel_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """The messages of a chat. Raises Unsupported for images, audio, video and documents."""
    names: dict[str, str] = {}
    said: list[Message] = []
    for message in messages:
        one = _kernel_message(message, names)
        names |= {call.id: call.name for call in one.tool_calls}
        said.append(one)
    return said


def _kernel_message(message: ChatMessage, names: dict[str, str]) -> Message:
    role = _ROLES[message.role]
    content = "\n".join(_text(block) for block in message.blocks if not isinstance(block, _UNSAID))
    extra = message.additional_kwargs
    if role == "tool":
        call_id = extra.get("tool_call_id") or extra.get("call_id")
        return Message(role, content, tool_call_id=call_id, name=extra.get("name") or names.get(str(call_id)))
    return Message(role, content, _tool_calls(message) if role == "assistant" else [])


def _text(block: Any) -> str:
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, CitableBlock):
        return "\n".join(_text(part) for part in block.content)
    if isinstance(block, CitationBlock):
        return _text(block.cited_content)
    raise Unsupported(
        f'a message holds a block of type "{block.block_type}"',
        fix="send text only; the model served here reads no media",
    )


def _tool_calls(message: ChatMessage) -> list[ToolCall]:
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if blocks:
        return [
            ToolCall(block.tool_call_id or f"call_{index}", block.tool_name, json_text(block.tool_kwargs))
            for index, block in enumerate(blocks)
        ]
    return [_legacy_call(call) for call in message.additional_kwargs.get("tool_calls") or ()]


def _legacy_call(call: Any) -> ToolCall:
    """A call beside the blocks: OpenAI's object, its dictionary, or a `ToolSelection`."""
    fields: dict[str, Any] = call.model_dump() if isinstance(call, BaseModel) else dict(call)
    if "tool_name" in fields:
        return ToolCall(fields["tool_id"], fields["tool_name"], json_text(fields["tool_kwargs"]))
    function = fields["function"]
    return ToolCall(fields["id"], function["name"], json_text(function["arguments"]))


def json_text(arguments: Any) -> str:
    """Arguments as JSON text; text stays as the model wrote it."""
    if isinstance(arguments, str):
        return arguments or "{}"
    return msgspec.json.encode(arguments, enc_hook=str).decode()
