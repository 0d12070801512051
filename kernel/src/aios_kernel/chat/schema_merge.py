"""Two JSON schemas made one that only values of both satisfy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

Schema: TypeAlias = dict[str, Any]

_REMARKS = frozenset({"title", "description", "default", "examples", "example", "format", "discriminator"})
_BOUNDS: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
}


class Conflict(Exception):
    """Two schemas that this module cannot combine."""


def merged(first: Any, second: Any) -> Any:
    """A schema that only values of both satisfy, though perhaps not all of them. Raises Conflict."""
    if first is True or first == {}:
        return second
    if second is True or second == {}:
        return first
    if not isinstance(first, dict) or not isinstance(second, dict):
        raise Conflict("a schema that nothing satisfies")
    left, right = cast(Schema, first), cast(Schema, second)
    out = {**right, **left}
    for name in left.keys() & right.keys():
        if left[name] != right[name] and name not in _REMARKS:
            out[name] = _both(name, left[name], right[name])
    if "properties" in out:
        out["properties"] = _closed(left, _closed(right, out["properties"]))
    return out


def _both(name: str, first: Any, second: Any) -> Any:
    if name in _BOUNDS:
        return _BOUNDS[name](first, second)
    if name in {"properties", "$defs", "definitions"}:
        shared = {key: merged(first[key], second[key]) for key in first.keys() & second.keys()}
        return {**first, **second, **shared}
    if name == "required":
        return list(dict.fromkeys([*first, *second]))
    if name == "type":
        return _common_types(first, second)
    if name == "enum":
        return [value for value in first if value in second]
    if name in {"items", "additionalProperties"}:
        return False if first is False or second is False else merged(first, second)
    if name == "allOf":
        return [*first, *second]
    raise Conflict(f"two different {name} for one value")


def _common_types(first: Any, second: Any) -> Any:
    left = cast("list[str]", first) if isinstance(first, list) else [first]
    right = cast("list[str]", second) if isinstance(second, list) else [second]
    common = [name for name in left if name in right]
    if not common and {"integer"} & {*left, *right} and {"number"} & {*left, *right}:
        common = ["integer"]
    if not common:
        raise Conflict(f"a value of type {first} and {second}")
    return common[0] if len(common) == 1 else common


def _closed(schema: Schema, properties: Schema) -> Schema:
    """Without the properties that a schema with `additionalProperties: false` does not know."""
    other = schema.get("additionalProperties", True)
    known: Schema = schema.get("properties", {})
    if isinstance(other, dict) and not properties.keys() <= known.keys():
        raise Conflict("additionalProperties beside further properties")
    return properties if other is not False else {key: value for key, value in properties.items() if key in known}
