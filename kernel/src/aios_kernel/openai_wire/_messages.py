"""Messages of Chat Completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from aios_kernel.errors import InvalidRequest
from aios_kernel.openai_wire._content import CHAT_PARTS, read_text
from aios_kernel.openai_wire._reader import Reader, refused
from aios_kernel.syscalls import Message, ToolCall

Role = Literal["system", "user", "assistant", "tool"]
CHAT_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
"""Roles by their spelling on the wire."""

CHAT_MESSAGE_INERT = frozenset({"name", "refusal", "annotations", "reasoning", "reasoning_content"})
"""Accepted on a message without effect: chat templates have no place for a participant's name, and the rest are
remarks on an earlier answer that clients send back with it."""


def read_messages(elements: Sequence[tuple[str, Any]]) -> list[Message]:
    """The messages of a request. Raises InvalidRequest when there are none."""
    if not elements:
        raise InvalidRequest('the field "messages" is missing or empty')
    messages: list[Message] = []
    names: dict[str, str] = {}
    for path, value in elements:
        message = _read_message(Reader(value, path), names)
        names |= {call.id: call.name for call in message.tool_calls}
        messages.append(message)
    return messages


def _read_message(fields: Reader, names: dict[str, str]) -> Message:
    spelled = fields.needed("role")
    role = CHAT_ROLES.get(spelled)
    if role is None:
        raise refused(f'a message of role "{spelled}" ({fields.path})', fix="use system, user, assistant or tool")
    content = read_text(fields.value("content"), fields.at("content"), CHAT_PARTS)
    if role == "tool":
        call_id = fields.needed("tool_call_id")
        # Some chat templates print the tool's name, which clients seldom repeat: the call that is answered has it.
        message = Message(role, content, tool_call_id=call_id, name=fields.text("name") or names.get(call_id))
    elif role == "assistant":
        message = Message(role, content, [_read_call(Reader(v, path)) for path, v in fields.items("tool_calls")])
    else:
        message = Message(role, content)
    fields.end(CHAT_MESSAGE_INERT)
    return message


def _read_call(outer: Reader) -> ToolCall:
    kind, inner = outer.text("type"), outer.child("function")
    if kind not in (None, "function") or inner is None:
        raise refused(f'a tool call of type "{kind}" ({outer.path})', fix="send calls of type function")
    call = ToolCall(id=outer.needed("id"), name=inner.needed("name"), arguments=inner.text("arguments") or "{}")
    inner.end()
    outer.end({"index"})
    return call
