"""A tool call that is written as a JSON object, and the grammar of one."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from aios_kernel.chat.formats.protocol import Structure
from aios_kernel.syscalls import ToolCall

_MAX_SPACE = 1
"""White space between the parts of a JSON value: enough for `", "`, and no room to dawdle in."""


def read_call(text: str, *argument_keys: str) -> ToolCall | None:
    """A tool call from `{"name": .., KEY: ..}`; None if the text is none.

    The arguments keep the model's own spelling. Control characters in strings, which JSON forbids, are let pass.
    """
    try:
        fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return call_of(loads(text), *argument_keys)
    name = loads(_text(fields.get("name")))
    arguments = next((_text(fields[key]) for key in argument_keys if _text(fields.get(key)) != "null"), "{}")
    return named_call(name, arguments)


def read_calls(text: str, *argument_keys: str) -> list[ToolCall | None]:
    """The calls of a JSON list of them, None for what is no call; empty if the text is no list."""
    try:
        parts = msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        values = loads(text)
        listed = cast("list[Any]", values) if isinstance(values, list) else []
        return [call_of(value, *argument_keys) for value in listed]
    return [read_call(_text(part), *argument_keys) for part in parts]


def call_of(value: Any, *argument_keys: str) -> ToolCall | None:
    """A tool call from its JSON value; None if it is none."""
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    arguments = next((fields[key] for key in argument_keys if fields.get(key) is not None), {})
    return named_call(fields.get("name"), _dumps(arguments))


def named_call(name: Any, arguments: str) -> ToolCall | None:
    """A call of a tool with arguments as JSON text: an object, or a string that holds one."""
    value = loads(arguments)
    if isinstance(value, str):
        arguments, value = value, loads(value)
    if not isinstance(name, str) or not name or not isinstance(value, dict) or not _sound(name + arguments):
        return None
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        arguments = _dumps(value)
    return ToolCall(id=f"call_{secrets.token_hex(12)}", name=name, arguments=arguments.strip())


def loads(text: str) -> Any:
    """The JSON value of a text, control characters in strings allowed; None if it is none."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def ends_in_string(text: str) -> bool:
    """Whether JSON text breaks off inside a string."""
    try:
        json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return False
    return False


def quoted(text: str) -> str:
    """A JSON string."""
    return json.dumps(text, ensure_ascii=False)


def json_value(schema: dict[str, Any]) -> Structure:
    """The grammar of a JSON value."""
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": _MAX_SPACE}


def tag(begin: str, content: Structure, end: str) -> Structure:
    """Content between two fixed texts."""
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def one_or_more(tags: Sequence[Structure], separator: str | None) -> Structure:
    """One of the tags, or with a separator several."""
    return {
        "type": "tags_with_separator",
        "tags": list(tags),
        "separator": separator or "",
        "at_least_one": True,
        "stop_after_first": separator is None,
    }


def text_with(trigger: str, tags: Sequence[Structure], *, many: bool) -> Structure:
    """Text in which the trigger begins one of the tags; not `many`: the first one ends the answer."""
    return {"type": "triggered_tags", "triggers": [trigger], "tags": list(tags), "stop_after_first": not many}


def _text(raw: msgspec.Raw | None) -> str:
    return "null" if raw is None else bytes(raw).decode()


def _dumps(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if _sound(text) else json.dumps(value)


def _sound(text: str) -> bool:
    """Whether the text can be sent: half a surrogate pair, which a JSON escape may spell, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
