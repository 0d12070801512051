"""Memory and storage as MCP tools: their schemas, the syscalls that they are, and how results read."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from aios_kernel.errors import InvalidRequest
from aios_kernel.syscalls import (
    FileData,
    MemoryAdd,
    MemoryDelete,
    MemoryGet,
    MemorySearch,
    MemoryUpdate,
    Result,
    StorageGet,
    StorageList,
    StoragePut,
    StorageRollback,
    StorageVersions,
    Syscall,
)

_NAMESPACE: Final = "Whose notes: `agent/NAME` or `group/NAME` and what is below; none: the caller's own."
_OWNER: Final = "Whose files: `agent/NAME` or `group/NAME`; none: the caller's own."
_PATH: Final = "Path of the file, with single slashes."


@dataclass(frozen=True, slots=True)
class OwnTool:
    """A syscall as an MCP tool.

    Attributes:
        name: of the tool.
        description: for the model.
        parameters: JSON schema of its arguments.
        syscall: makes the syscall from the arguments; raises InvalidRequest.
        changes: whether it changes anything, and `destroys` whether that can be undone only from a backup.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    syscall: Callable[[Mapping[str, Any]], Syscall]
    changes: bool = False
    destroys: bool = False


def _of(kind: type[Any], description: str, fields: Mapping[str, str], **more: bool) -> OwnTool:
    """The tool of a syscall, with those of its fields that are named here; their types are the syscall's."""
    tag = str(kind.__struct_config__.tag)
    whole = msgspec.json.schema(kind)["$defs"][kind.__name__]
    properties = {name: whole["properties"][name] | {"description": says} for name, says in fields.items()}
    required = [name for name in whole["required"] if name in properties]

    def syscall(arguments: Mapping[str, Any]) -> Syscall:
        _refuse_unknown(tag, arguments, properties)
        try:
            return msgspec.convert({"type": tag, **arguments}, kind)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"{tag}: {error}", fix="follow the tool's schema") from error

    return OwnTool(tag.replace(".", "_"), description, _object(properties, required), syscall, **more)


def _object(properties: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": False}


def _refuse_unknown(tag: str, arguments: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in arguments:
        if name not in known:
            raise InvalidRequest(f"{tag} has no argument {name[:80]!a}", fix=f"it has {', '.join(known)}")


class _Put(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of storage_put: bytes are no JSON."""

    path: str
    text: str | None = None
    base64: str | None = None
    owner: str | None = None


def _put(arguments: Mapping[str, Any]) -> Syscall:
    try:
        put = msgspec.convert(dict(arguments), _Put)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"storage.put: {error}", fix="follow the tool's schema") from error
    if (put.text is None) == (put.base64 is None):
        raise InvalidRequest("storage.put needs either text or base64", fix="give one of them")
    try:
        data = base64.b64decode(put.base64, validate=True) if put.base64 is not None else (put.text or "").encode()
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"storage.put: {error}", fix="give text, or bytes in base64") from error
    return StoragePut(path=put.path, data=data, owner=put.owner)


_PUT: Final = OwnTool(
    "storage_put",
    "Write a file; the versions before stay.",
    _object(
        {
            "path": {"type": "string", "description": _PATH},
            "text": {"type": "string", "description": "The content, if it is text..."},
            "base64": {"type": "string", "description": "...or in base64, if it is bytes."},
            "owner": {"type": ["string", "null"], "default": None, "description": _OWNER},
        },
        ["path"],
    ),
    _put,
    changes=True,
)

OWN_TOOLS: Final[dict[str, OwnTool]] = {
    tool.name: tool
    for tool in (
        _of(
            MemoryAdd,
            "Remember a text for later runs.",
            {
                "text": "What to remember.",
                "namespace": _NAMESPACE,
                "metadata": "Names and values to filter by.",
                "id": "Replace the note of this id.",
                "source": "The conversation or document that it is a piece of.",
                "ttl_s": "Seconds until it is forgotten.",
            },
            changes=True,
        ),
        _of(
            MemorySearch,
            "Find remembered notes by meaning and words, best first; without a query list them, oldest first.",
            {
                "query": "What to look for.",
                "namespace": f"{_NAMESPACE} `all`: every one that the caller may read.",
                "k": "How many notes at most.",
                "filter": "Metadata that they must have.",
                "author": "The agent that wrote them.",
                "since_s": "Not older than this, in seconds since 1970.",
                "until_s": "Not younger than this.",
                "after": "Without a query: begin behind the note of this id.",
            },
        ),
        _of(MemoryGet, "Read one note.", {"id": "Its id.", "namespace": _NAMESPACE}),
        _of(
            MemoryUpdate,
            "Change the text or the metadata of a note.",
            {"id": "Its id.", "text": "The new text.", "metadata": "The new metadata.", "namespace": _NAMESPACE},
            changes=True,
        ),
        _of(MemoryDelete, "Forget one note.", {"id": "Its id.", "namespace": _NAMESPACE}, changes=True, destroys=True),
        _PUT,
        _of(
            StorageGet,
            "Read a file.",
            {"path": _PATH, "version": "None: the newest.", "owner": _OWNER},
        ),
        _of(StorageList, "List files.", {"prefix": "Only below this path.", "owner": _OWNER}),
        _of(StorageVersions, "List all versions of a file, newest first.", {"path": _PATH, "owner": _OWNER}),
        _of(
            StorageRollback,
            "Write an old version of a file again as its newest.",
            {"path": _PATH, "version": "The old version.", "owner": _OWNER},
            changes=True,
        ),
    )
}
"""By name."""


def plain(result: Result) -> dict[str, Any]:
    """A result as JSON can hold it, without its tag; the bytes of a file as `text` if they are, else as `base64`."""
    if isinstance(result, FileData):
        found: dict[str, Any] = msgspec.to_builtins(result.info)
        found.pop("type")
        try:
            return found | {"text": result.data.decode()}
        except UnicodeDecodeError:
            return found | {"base64": base64.b64encode(result.data).decode()}
    return _untagged(msgspec.to_builtins(result))


def _untagged(value: Any) -> Any:
    """Tags are for the kernel's own wire. Only messages have them, and lists of messages; metadata is left alone."""
    if isinstance(value, dict):
        return {
            key: [_untagged(each) for each in item] if isinstance(item, list) and key in ("notes", "files") else item
            for key, item in value.items()  # pyright: ignore[reportUnknownVariableType]
            if key != "type"
        }
    return value
