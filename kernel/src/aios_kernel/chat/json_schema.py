"""JSON schemas rewritten so that a grammar can hold an answer to them.

xgrammar takes some keywords one at a time only (`anyOf` beside `properties`, several `allOf`), guesses that a schema
without a type means any value, and ignores others without a word. Here the first are combined, the second get the type
that their keywords speak of, and the last are refused by name. What is written is narrower than what was asked for,
never wider: whatever satisfies it satisfies the original. (`oneOf` is taken as `anyOf`: its schemas should exclude each
other, as a tagged union's do.)
"""

from __future__ import annotations

from typing import Any, cast

from aios_kernel.chat.schema_merge import Conflict, Schema, merged
from aios_kernel.errors import InvalidSchema

_UNHELD = frozenset(
    {
        "not", "if", "contains", "minContains", "maxContains", "dependentRequired", "dependentSchemas", "dependencies",
        "unevaluatedItems", "$dynamicRef", "$recursiveRef",
    }
)  # fmt: skip
_ANNOTATIONS = frozenset(
    {
        "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment",
        "$schema", "$id", "$defs", "definitions", "discriminator", "nullable", "strict",
    }
)  # fmt: skip
_TYPES: dict[str, str] = {
    **dict.fromkeys(("properties", "required", "additionalProperties", "minProperties", "propertyNames"), "object"),
    **dict.fromkeys(("maxProperties", "patternProperties"), "object"),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems", "uniqueItems"), "array"),
    **dict.fromkeys(("minLength", "maxLength", "pattern"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
}
"""The type that a keyword speaks of."""
_PYTHON: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}
_FAR = {"integer": 10**18, "number": 10**15}
"""The bound that a range is given where it has none: within 64 bits, and within what a double holds exactly."""
_MOST_INLINED = 16
"""References merged into each other before a schema counts as endless."""


def narrowed(schema: Schema, *, strict: bool) -> Schema:
    """A schema of the same or fewer values, in terms that the grammar holds.

    Args:
        schema: a JSON schema; one that says nothing means any object.
        strict: refuse what the grammar cannot hold; else it is left in and has no effect.

    Raises:
        InvalidSchema: it names a keyword that cannot be held, or contradicts itself.
    """
    whole = {"type": "object", **schema} if schema.keys() <= _ANNOTATIONS else schema
    return cast(Schema, _Narrower(schema, strict).schema(whole, "#", 0))


class _Narrower:
    def __init__(self, root: Schema, strict: bool) -> None:
        self._root = root
        self._strict = strict

    def schema(self, value: Any, path: str, inlined: int) -> Any:
        """One schema and all below it."""
        if not isinstance(value, dict):
            return value
        found = dict(cast(Schema, value))
        try:
            found, inlined = self._combined(found, inlined)
        except Conflict as conflict:
            if self._strict:
                raise _refused(f"{conflict} ({path})") from conflict
            found = dict(cast(Schema, value))
        if self._strict:
            _refuse_unheld(found, path)
        _infer_type(found)
        _close_range(found)
        if "enum" in found and "type" in found:
            found["enum"] = [option for option in found["enum"] if _is(option, found["type"])]
        if {"minLength", "maxLength", "pattern"} & set(found):
            found.pop("format", None)  # only a remark in JSON schema, and xgrammar holds one or the other
        self._require(found, path)
        return self._below(found, path, inlined)

    def _combined(self, found: Schema, inlined: int) -> tuple[Schema, int]:
        """Without `allOf`, and with `$ref`, `anyOf` and `oneOf` alone in their schemas. Raises Conflict."""
        while True:
            if inlined > _MOST_INLINED:
                raise Conflict("references that refer to themselves beside other keywords")
            if "allOf" in found:
                parts = found.pop("allOf")
                for part in parts:
                    found = merged(found, self._resolved(part))
            elif "$ref" in found and self._binding(found, "$ref"):
                target = self._resolved({"$ref": found.pop("$ref")})
                found = merged(found, target)
            elif ((name := "anyOf") in found and self._binding(found, name)) or (
                (name := "oneOf") in found and self._binding(found, name)
            ):
                rest = {key: part for key, part in found.items() if key not in {name, "$defs", "definitions"}}
                kept = {key: found[key] for key in ("$defs", "definitions") if key in found}
                return {**kept, name: [merged(rest, self._resolved(branch)) for branch in found[name]]}, inlined + 1
            else:
                return found, inlined
            inlined += 1

    def _binding(self, found: Schema, name: str) -> bool:
        """Whether anything beside this keyword holds the value too."""
        return bool(set(found) - _ANNOTATIONS - {name})

    def _resolved(self, part: Any) -> Any:
        """A schema, or what it refers to. Raises Conflict for what is not in this document."""
        if not isinstance(part, dict) or "$ref" not in part:
            return cast(Any, part)
        fields = cast(Schema, part)
        target: Any = self._root
        for step in str(fields["$ref"]).removeprefix("#").strip("/").split("/"):
            if step:
                target = cast(Schema, target).get(step.replace("~1", "/").replace("~0", "~"), None)
            if not isinstance(target, dict | bool):
                raise Conflict(f'"$ref": "{fields["$ref"]}" leads nowhere')
        rest = {key: value for key, value in fields.items() if key != "$ref"}
        return merged(rest, target)

    def _require(self, found: Schema, path: str) -> None:
        """Give required properties that are not described a schema."""
        missing = [name for name in found.get("required", ()) if name not in found.get("properties", {})]
        if not missing or found.get("patternProperties"):
            return
        other = found.get("additionalProperties", True)
        if other is False:
            raise _refused(f'"{missing[0]}" is required, but no such property is allowed ({path})')
        found["properties"] = {**found.get("properties", {}), **dict.fromkeys(missing, {} if other is True else other)}

    def _below(self, found: Schema, path: str, inlined: int) -> Schema:
        for name in ("properties", "patternProperties", "$defs", "definitions"):
            if isinstance(found.get(name), dict):
                found[name] = {
                    key: self.schema(value, f"{path}/{name}/{key}", inlined) for key, value in found[name].items()
                }
        for name in ("anyOf", "oneOf", "prefixItems"):
            if isinstance(found.get(name), list):
                found[name] = [
                    self.schema(value, f"{path}/{name}/{number}", inlined) for number, value in enumerate(found[name])
                ]
        for name in ("items", "additionalProperties"):
            if name in found:
                found[name] = self.schema(found[name], f"{path}/{name}", inlined)
        return found


def _refuse_unheld(found: Schema, path: str) -> None:
    unheld = sorted(_UNHELD & set(found))
    if found.get("uniqueItems") and found.get("maxItems", 2) > 1:
        unheld.append("uniqueItems")
    if "pattern" in found and {"minLength", "maxLength"} & set(found):
        unheld.append("pattern beside minLength or maxLength")
    if "multipleOf" in found and found.get("type") != "integer":
        unheld.append("multipleOf of a number")
    if unheld:
        raise _refused(f"{unheld[0]} cannot be held ({path})")


def _infer_type(found: Schema) -> None:
    if {"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf"} & set(found):
        return
    types = {_TYPES[name] for name in found if name in _TYPES}
    if types:
        found["type"] = min(types)


def _close_range(found: Schema) -> None:
    """Give a number that is bounded on one side another bound, far off: else its digits have no end."""
    names = cast("list[str]", found["type"]) if isinstance(found.get("type"), list) else [found.get("type")]
    if not {"integer", "number"} & {*names} or "multipleOf" in found:
        return
    far = _FAR["number" if "number" in names else "integer"]
    low, high = (
        [found[name] for name in (kind, f"exclusive{kind.capitalize()}") if isinstance(found.get(name), int | float)]
        for kind in ("minimum", "maximum")
    )
    if low and not high and max(low) < far:
        found["maximum"] = far
    if high and not low and min(high) > -far:
        found["minimum"] = -far


def _is(value: Any, types: Any) -> bool:
    names = cast("list[str]", types) if isinstance(types, list) else [str(types)]
    return any(
        isinstance(value, _PYTHON.get(name, (object,))) and (name == "boolean") >= isinstance(value, bool)
        for name in names
    )


def _refused(why: str) -> InvalidSchema:
    return InvalidSchema(
        f"the JSON schema cannot be compiled: {why}", fix="leave that out, and check the answer yourself if need be"
    )
