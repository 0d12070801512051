"""What a tool of an MCP server answered, as the text that a model reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aios_kernel.errors import ToolError

if TYPE_CHECKING:
    from mcp_types import CallToolResult


def text_of(name: str, result: CallToolResult) -> str:
    """All of a result in one text: its texts as they are, what is no text named with its type and size.

    Structured content follows unless one of the texts says the same.

    Raises:
        ToolError: the tool says that it failed; the message is the tool's.
    """
    texts = [_block(block) for block in result.content]
    structured = result.structured_content
    if structured is not None and not any(_says(text, structured) for text in texts):
        texts.append(json.dumps(structured, ensure_ascii=False))
    text = "\n".join(texts)
    if result.is_error:
        raise ToolError(f"tool {name!a} failed: {text or 'it does not say why'}")
    return text


def _block(block: Any) -> str:
    """One piece of content."""
    if block.type == "text":
        return block.text
    if block.type in ("image", "audio"):
        return f"[{block.type}, {block.mime_type}, {_size(block.data)}, not shown]"
    if block.type == "resource_link":
        return f"[link to {block.uri}, {block.name}{f', {block.mime_type}' if block.mime_type else ''}, not read]"
    resource = block.resource
    if (text := getattr(resource, "text", None)) is not None:
        return f"[{resource.uri}]\n{text}"
    return f"[{resource.uri}, {resource.mime_type or 'bytes'}, {_size(resource.blob)}, not shown]"


def _size(base64: str) -> str:
    return f"{len(base64) * 3 // 4 - base64[-2:].count('='):,} bytes"


def _says(text: str, structured: object) -> bool:
    try:
        return json.loads(text) == structured
    except (ValueError, RecursionError):
        return False
