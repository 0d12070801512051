"""Input items of the Responses API, turned into messages."""

from __future__ import annotations

import msgspec

from aios_kernel.errors import InvalidRequest
from aios_kernel.openai_wire._content import RESPONSES_PARTS, read_text
from aios_kernel.openai_wire._messages import CHAT_ROLES
from aios_kernel.openai_wire._reader import Reader, refused
from aios_kernel.syscalls import Message, ToolCall

MESSAGE_INERT = frozenset({"id", "status", "phase"})
CALL_INERT = frozenset({"id", "status", "caller", "namespace"})
"""Remarks of the server on its own earlier output, which clients send back with it."""


def read_input(fields: Reader, instructions: str | None) -> list[Message]:
    """The messages that `input` and `instructions` stand for. Raises InvalidRequest when there is no input."""
    messages = [Message("system", instructions)] if instructions else []
    value = fields.value("input")
    if isinstance(value, str):
        return [*messages, Message("user", value)]
    if not isinstance(value, list) or not value:
        raise InvalidRequest('the field "input" must be a string or a list of items, and not empty')
    names: dict[str, str] = {}
    for index, element in enumerate(value):
        _add(Reader(element, f"input[{index}]"), messages, names)
    return messages


def _add(item: Reader, messages: list[Message], names: dict[str, str]) -> None:
    kind = item.text("type")
    if kind in (None, "message"):
        messages.append(_read_message(item))
    elif kind == "function_call":
        call = ToolCall(id=item.needed("call_id"), name=item.needed("name"), arguments=item.text("arguments") or "{}")
        item.end(CALL_INERT)
        names[call.id] = call.name
        _add_call(call, messages)
    elif kind == "function_call_output":
        call_id = item.needed("call_id")
        output = read_text(item.value("output"), item.at("output"), RESPONSES_PARTS)
        item.end(CALL_INERT)
        messages.append(Message("tool", output, tool_call_id=call_id, name=names.get(call_id)))
    elif kind != "reasoning":  # thoughts of an earlier turn, which no model is shown again
        raise refused(f'an input item of type "{kind}" ({item.path})', fix="send messages and function calls")


def _read_message(item: Reader) -> Message:
    role = CHAT_ROLES.get(item.needed("role"), "tool")
    if role == "tool":
        raise refused(f"the role of {item.path}", fix="use system, developer, user or assistant")
    content = read_text(item.value("content"), item.at("content"), RESPONSES_PARTS)
    item.end(MESSAGE_INERT)
    return Message(role, content)


def _add_call(call: ToolCall, messages: list[Message]) -> None:
    """Append to the assistant's turn that is being told, so that it reads as the model wrote it."""
    if messages and messages[-1].role == "assistant":
        turn = messages[-1]
        messages[-1] = msgspec.structs.replace(turn, tool_calls=[*turn.tool_calls, call])
    else:
        messages.append(Message("assistant", tool_calls=[call]))
