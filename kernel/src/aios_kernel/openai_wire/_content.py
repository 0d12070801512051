"""Text content in its many spellings: a string, or a list of typed parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from aios_kernel.errors import InvalidRequest
from aios_kernel.openai_wire._reader import Reader, refused

CHAT_PARTS = {"text": "text", "refusal": "refusal"}
"""Part types of Chat Completions that carry text, and the field in which they carry it."""

RESPONSES_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""The same for the Responses API."""

PART_INERT = frozenset({"annotations", "logprobs", "cache_control", "prompt_cache_breakpoint"})
"""Accepted on a part without effect: an earlier answer's own remarks, and hints for caches that need none here."""


def read_text(value: Any, path: str, parts: Mapping[str, str]) -> str:
    """The text of a content field; parts are joined by newlines. Raises Unsupported for images, audio and files."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidRequest(f'the field "{path}" must be a string or a list of parts')
    elements = cast("list[Any]", value)
    return "\n".join(_read_part(element, f"{path}[{index}]", parts) for index, element in enumerate(elements))


def _read_part(value: Any, path: str, parts: Mapping[str, str]) -> str:
    part = Reader(value, path)
    kind = part.needed("type")
    if kind not in parts:
        raise refused(f'content of type "{kind}" ({path})', fix="send text only; the model served here reads no media")
    text = part.needed(parts[kind])
    part.end(PART_INERT)
    return text
