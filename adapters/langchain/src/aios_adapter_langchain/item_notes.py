"""Items of a LangGraph store as notes of the kernel's memory, and back."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.store.base import Item, get_text_at_path, tokenize_path

from aios_kernel.errors import Unsupported
from aios_kernel.syscalls import MemoryAdd, Note

_LONGEST_ID = 500

_serializer = JsonPlusSerializer()  # msgpack, never pickle


def note_id(namespace: tuple[str, ...], key: str) -> str:
    """The note's id for a place in the store; long ones become a digest."""
    text = "/".join(quote(str(part), safe="") for part in (*namespace, key))
    return text if len(text) <= _LONGEST_ID else "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def prefix_filter(prefix: tuple[str, ...]) -> dict[str, str | int | float | bool]:
    """The filter that finds the notes of all namespaces that begin with a prefix."""
    return {f"ns{depth}": label for depth, label in enumerate(prefix)}


def note_of(item: Item, space: str, texts: list[str] | None) -> MemoryAdd:
    """The note to write for an item; it is found by meaning if it has `texts` to embed."""
    metadata = {
        **prefix_filter(item.namespace),
        "namespace": list(item.namespace),
        "key": item.key,
        "created_at": item.created_at.isoformat(),
        "updated_at": item.updated_at.isoformat(),
        "value": _encoded(item.value),
    }
    text = "\n".join(texts) if texts else json.dumps(item.value, default=str, skipkeys=True)
    return MemoryAdd(
        text=text,
        namespace=space,
        metadata=metadata,
        id=note_id(item.namespace, item.key),
        embed=bool(texts),
    )


def item_of(note: Note) -> Item:
    """The item that a note keeps."""
    metadata = note.metadata
    return Item(
        value=_decoded(metadata["value"]),
        key=metadata["key"],
        namespace=tuple(metadata["namespace"]),
        created_at=metadata["created_at"],
        updated_at=metadata["updated_at"],
    )


def texts_of(value: Mapping[str, Any], index: Any, config: Any) -> list[str] | None:
    """The texts of a value that its store wants embedded; None: none.

    Args:
        value: the item's value.
        index: the `index` argument of the put: False, paths, or None for the store's own fields.
        config: the store's index configuration; None: nothing is embedded.
    """
    if config is None or index is False:
        return None
    paths = (config.get("fields") or ["$"]) if index is None else index
    return [text for path in paths for text in get_text_at_path(value, path if path == "$" else tokenize_path(path))]


def _encoded(value: dict[str, Any]) -> Any:
    """The value itself if JSON gives it back unchanged, else LangGraph's msgpack of it."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()  # half a surrogate pair cannot be sent
        if json.loads(text) == value:
            return value
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        kind, data = _serializer.dumps_typed(value)
    except TypeError as error:
        raise Unsupported(
            f"an item of the store cannot be written as msgpack: {error}",
            fix='put plain values into the store, or use @aios.agent(memory="mediated")',
        ) from error
    return [kind, base64.b64encode(data).decode()]


def _decoded(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    kind, data = value
    return _serializer.loads_typed((kind, base64.b64decode(data)))
