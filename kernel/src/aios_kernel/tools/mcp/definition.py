"""What a server says a tool is: the part that a person approves, its hash, and what changed in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aios_kernel.errors import ToolError
from aios_kernel.syscalls import ToolChange, ToolSpec
from aios_kernel.tools.mcp.hidden import spelt_by_tags, visible, visible_schema

if TYPE_CHECKING:
    from mcp_types import Tool

MOST_TOOLS: Final = 1000
MOST_BYTES: Final = 256 * 1024
"""Of one definition: everything in it costs the model tokens."""


class Definition(msgspec.Struct, frozen=True):
    """One tool as its server listed it; everything in it is the server's word, and reaches a model or decides for one.

    `parameters` and `output` are JSON schemas; `annotations` are the server's hints about the tool's effects.
    """

    name: str
    title: str = ""
    description: str = ""
    parameters: dict[str, Any] = {}
    output: dict[str, Any] | None = None
    annotations: dict[str, Any] = {}

    def digest(self) -> str:
        """SHA-256 of all of it, in hex; the order of keys does not matter."""
        return _digest(msgspec.to_builtins(self))

    def spec(self, server: str) -> ToolSpec:
        """What the model sees: `server/name`, and no text that the person who approved it could not see."""
        return ToolSpec(f"{server}/{self.name}", visible(self.description), visible_schema(self.parameters))


def definition_of(tool: Tool) -> Definition:
    """A tool of `tools/list`.

    Raises:
        ToolError: it is larger than 256 KiB.
    """
    annotations = tool.annotations.model_dump(mode="json", by_alias=True, exclude_none=True) if tool.annotations else {}
    definition = Definition(
        name=tool.name,
        title=tool.title or "",
        description=tool.description or "",
        parameters=tool.input_schema,
        output=tool.output_schema,
        annotations=annotations,
    )
    try:
        size = len(_canonical(msgspec.to_builtins(definition)))
    except RecursionError as error:
        raise ToolError(f"the definition of {tool.name[:80]!a} is nested too deeply") from error
    if size > MOST_BYTES:
        raise ToolError(f"the definition of {tool.name[:80]!a} has {size:,} bytes; the limit is {MOST_BYTES:,}")
    return definition


def listing_digest(definitions: Iterable[Definition]) -> str:
    """SHA-256 of a whole list, whatever its order: what a person says yes to."""
    return _digest(sorted((definition.name, definition.digest()) for definition in definitions))


def changes(pinned: Mapping[str, Definition], listed: Mapping[str, Definition]) -> list[ToolChange]:
    """All differences between what is pinned and what a server lists now, by tool; texts as a person may read them."""
    found: list[ToolChange] = []
    for name in sorted(pinned.keys() | listed.keys()):
        before, after = pinned.get(name), listed.get(name)
        if before is None and after is not None:
            whole = _shown(msgspec.to_builtins(after))
            found.append(ToolChange(visible(name), "new", "", whole, _hidden(msgspec.to_builtins(after))))
        elif after is None:
            found.append(ToolChange(visible(name), "gone"))
        elif before is not None:
            found += _field_changes(before, after)
    return found


def changed_fields(before: Definition, after: Definition) -> list[str]:
    """Names of the fields that differ."""
    return [
        field
        for field in Definition.__struct_fields__
        if _canonical(getattr(before, field)) != _canonical(getattr(after, field))
    ]


def _field_changes(before: Definition, after: Definition) -> list[ToolChange]:
    return [
        ToolChange(
            visible(after.name),
            field,
            _shown(getattr(before, field)),
            _shown(getattr(after, field)),
            _hidden(getattr(after, field)),
        )
        for field in changed_fields(before, after)
    ]


def _shown(value: object) -> str:
    return visible(value) if isinstance(value, str) else visible(json.dumps(value, indent=1, ensure_ascii=False))


def _hidden(value: object) -> str:
    return spelt_by_tags(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _canonical(value: object) -> bytes:
    """JSON with sorted keys; unlike Python's `==` it tells `true` from 1. Half surrogates stay as they are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(value: object) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()
