"""JSON grammars whose numbers end.

A schema that bounds no integer lets a model write digits until its window is full, and a small model does: nothing in
the grammar tells it to stop. So numbers have as many digits as programs can hold: 19 before the point (64 bits), 20
behind it, an exponent of 3. That is narrower than JSON, never wider; white space is bounded by the formats already.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

import xgrammar

_INTEGER = '("-"? ("0" | [1-9] [0-9]{0,18}))'
_RULES = {
    "basic_integer": _INTEGER,
    "basic_number": f'({_INTEGER} ("." [0-9]{{1,20}})? ([eE] [+-]? [0-9]{{1,3}})?)',
}
"""The rules of xgrammar's JSON grammars that every number without bounds of its own refers to."""
_RULE = re.compile(rf"^({'|'.join(_RULES)}) ::= .*$", re.MULTILINE)
_OWN_RULE = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const"}
_MAPS, _LISTS = {"properties", "patternProperties", "$defs", "definitions"}, {"anyOf", "oneOf", "allOf", "prefixItems"}
_SINGLE = {"items", "additionalProperties"}
"""Where a schema has further ones."""


def bounded(form: Any) -> Any:
    """A structural tag with the grammar of bounded numbers in the place of each JSON schema. Raises RuntimeError."""
    if isinstance(form, list):
        return [bounded(part) for part in cast("list[Any]", form)]
    if not isinstance(form, dict):
        return form
    fields = cast("dict[str, Any]", form)
    if fields.get("type") == "json_schema" and fields.get("style", "json") == "json":
        return {"type": "grammar", "grammar": _grammar(fields)}
    return {key: bounded(value) for key, value in fields.items()}


def _grammar(form: dict[str, Any]) -> str:
    grammar = xgrammar.Grammar.from_json_schema(
        json.dumps(_referring(form["json_schema"])), max_whitespace_cnt=form.get("max_whitespace_cnt")
    )
    return _RULE.sub(lambda rule: f"{rule[1]} ::= {_RULES[rule[1]]}", str(grammar))


def _referring(schema: Any) -> Any:
    """A schema whose plain numbers stand behind `anyOf`: xgrammar writes what a `$ref` leads to out, all but this."""
    if not isinstance(schema, dict):
        return schema
    fields = cast("dict[str, Any]", schema)
    if fields.get("type") in ("integer", "number") and not fields.keys() & _OWN_RULE:
        return {"anyOf": [{"type": fields["type"]}]}
    found = dict(fields)
    for name, value in fields.items():
        if name in _MAPS and isinstance(value, dict):
            found[name] = {key: _referring(part) for key, part in cast("dict[str, Any]", value).items()}
        elif name in _LISTS and isinstance(value, list):
            found[name] = [_referring(part) for part in cast("list[Any]", value)]
        elif name in _SINGLE:
            found[name] = _referring(value)
    return found
