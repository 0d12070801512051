"""AutoGen's `MemoryContent` as a note of the kernel, and back: every content type, mime type and metadata."""

from __future__ import annotations

import base64
import json
from typing import Any

from autogen_core import Image
from autogen_core.memory import MemoryContent, MemoryMimeType

from aios_kernel.syscalls import MemoryAdd, Note


def note_of(content: MemoryContent, namespace: str) -> MemoryAdd:
    """The syscall that keeps a content. Texts and JSON can be found by meaning, bytes and images only in their list."""
    kind, text = _text_of(content.content)
    mime = content.mime_type
    metadata: dict[str, Any] = {
        "autogen": kind,
        "mime_type": mime.value if isinstance(mime, MemoryMimeType) else mime,
        "mime_enum": isinstance(mime, MemoryMimeType),
    }
    if content.metadata is not None:
        metadata["metadata"] = json.dumps(content.metadata, default=str)
    embed = kind in {"text", "json"} and bool(text.strip())
    return MemoryAdd(text=text, namespace=namespace, metadata=metadata, embed=embed)


def content_of(note: Note) -> MemoryContent:
    """The content that a note keeps; a note that somebody else wrote is plain text."""
    kept = note.metadata
    mime = str(kept.get("mime_type", MemoryMimeType.TEXT.value))
    metadata = kept.get("metadata")
    return MemoryContent(
        content=_content_of(str(kept.get("autogen", "text")), note.text),
        mime_type=MemoryMimeType(mime) if kept.get("mime_enum", True) else mime,
        metadata=json.loads(metadata) if isinstance(metadata, str) else None,
    )


def _text_of(content: Any) -> tuple[str, str]:
    if isinstance(content, str):
        return "text", content
    if isinstance(content, bytes):
        return "bytes", base64.b64encode(content).decode()
    if isinstance(content, Image):
        return "image", content.to_base64()
    return "json", json.dumps(content, default=str)


def _content_of(kind: str, text: str) -> Any:
    if kind == "bytes":
        return base64.b64decode(text)
    if kind == "image":
        return Image.from_base64(text)
    return json.loads(text) if kind == "json" else text
