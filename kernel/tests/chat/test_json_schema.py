"""Every keyword of JSON schema is held, or refused by name; none is ignored."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
import torch

from aios_kernel.chat.json_schema import narrowed
from aios_kernel.errors import InvalidSchema
from aios_kernel.syscalls import LlmChat, Message, ToolSpec

USER = Message(role="user", content="hi")
INTEGER, CLOSED = {"type": "integer"}, {"additionalProperties": False}
A_AND_B = {"a": INTEGER, "b": INTEGER}
HELD: dict[str, dict[str, Any]] = {
    "multiple": {**INTEGER, "multipleOf": 5},
    "range": {**INTEGER, "minimum": -3, "maximum": 12},
    "open range": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "lengths": {"type": "string", "minLength": 2, "maxLength": 5},
    "lengths without a type": {"minLength": 3, "maxLength": 9},
    "bounds without a type": {"maximum": 3},
    "items without a type": {"items": INTEGER, "maxItems": 3},
    "pattern": {"type": "string", "pattern": "^[a-z]{2}$"},
    "format with a length": {"type": "string", "format": "email", "maxLength": 4},
    "enumeration": {"enum": [1, "a", None, True, {"x": 1}, [1, 2]]},
    "enumeration of a type": {"type": "string", "enum": ["a", 1]},
    "booleans are no integers": {"type": "integer", "enum": [True, 7]},
    "constant": {"const": {"a": [1, "b"]}},
    "types": {"type": ["string", "null"], "maxLength": 3},
    "tuple": {"type": "array", "prefixItems": [INTEGER, {"type": "boolean"}], "items": False},
    "counts": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "unique of one": {"type": "array", "items": INTEGER, "uniqueItems": True, "maxItems": 1},
    "all of one": {"allOf": [{"$ref": "#/$defs/n"}], "description": "x", "$defs": {"n": INTEGER}},
    "all of two": {
        "allOf": [
            {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ]
    },
    "all of beside bounds": {**INTEGER, "allOf": [{"minimum": 5}, {"maximum": 9}]},
    "all of integers and numbers": {"allOf": [{"type": "number"}, {"type": "integer", "minimum": 2}]},
    "any of beside properties": {
        "type": "object", "properties": A_AND_B, "anyOf": [{"required": ["a"]}, {"required": ["b"]}], **CLOSED,
    },
    "reference beside bounds": {"$ref": "#/$defs/n", "minimum": 5, "$defs": {"n": INTEGER}},
    "old definitions": {
        "type": "object", "properties": {"a": {"$ref": "#/definitions/x"}}, "required": ["a"],
        "definitions": {"x": {"type": "boolean"}},
    },
    "recursion": {
        "$ref": "#/$defs/n",
        "$defs": {"n": {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}}, **CLOSED}},
    },
    "required but not described": {"type": "object", "properties": {}, "required": ["zz"]},
    "other properties of a type": {"type": "object", "required": ["q"], "additionalProperties": {"type": "boolean"}},
    "names by pattern": {"type": "object", "patternProperties": {"^x": INTEGER}, **CLOSED},
    "names": {"type": "object", "propertyNames": {"pattern": "^a"}, "additionalProperties": INTEGER},
    "counted properties": {"type": "object", "additionalProperties": INTEGER, "minProperties": 1, "maxProperties": 3},
    "closed and merged": {
        "type": "object", "properties": {"a": INTEGER}, **CLOSED,
        "allOf": [{"properties": {"a": {"minimum": 2}, "c": INTEGER}}],
    },
    "anything": {"title": "an object"},
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unique": ({"type": "array", "items": INTEGER, "uniqueItems": True}, "uniqueItems"),
    "not": ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, r"not .*#/properties/a"),
    "if": ({"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}}, "if"),
    "contains": ({"type": "array", "contains": {"const": 5}}, "contains"),
    "dependent": ({"type": "object", "properties": A_AND_B, "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    "pattern with a length": ({"type": "string", "pattern": "^a+$", "maxLength": 3}, "pattern beside"),
    "multiple of a number": ({"type": "number", "multipleOf": 0.5}, "multipleOf"),
    "types that exclude each other": ({"type": "string", "allOf": [{"type": "integer"}]}, "string and integer"),
    "constants that exclude each other": ({"const": 1, "allOf": [{"const": 2}]}, "two different const"),
    "impossible": ({"type": "object", "required": ["a"], **CLOSED}, '"a" is required'),
    "nowhere": ({"minimum": 3, "$ref": "#/nowhere"}, "leads nowhere"),
    "endless": ({"minimum": 3, "$ref": "#"}, "refer to themselves"),
    "no range": ({"type": "integer", "minimum": 5, "maximum": 2}, "minimum greater than maximum"),
}


def walk(codec: Any, grammar: Any, seed: int, limit: int = 300) -> str | None:
    """Allowed tokens at random, the way home ever more likely; None if the end was not reached."""
    chooser, tokens = random.Random(seed), list[int]()
    mask = torch.zeros(1, grammar._ends.shape[1], dtype=torch.int32)
    closing = codec.encode('}]"') + sorted(codec.end_tokens)
    for step in range(limit):
        grammar.fill_mask(mask, 0)
        allowed = ((mask[0][:, None] >> torch.arange(32, dtype=torch.int32)) & 1).reshape(-1).nonzero()[:, 0].tolist()
        home = [token for token in closing if token in allowed]
        token = home[-1] if home and chooser.random() < 0.3 + step / limit else chooser.choice(allowed)
        grammar.accept(token)
        if token in codec.end_tokens:
            return codec.decode(tokens)
        tokens.append(token)
    return None


@pytest.mark.parametrize("name", sorted(HELD))
def test_whatever_ends_satisfies_the_schema(codecs: Any, name: str) -> None:
    schema = HELD[name]
    grammar = codecs().grammar(LlmChat(messages=[USER], schema=schema))
    answers = [walk(codecs(), grammar.fork(), seed) for seed in range(12)]
    ended = [answer for answer in answers if answer is not None]
    assert len(ended) >= 6
    for answer in ended:
        jsonschema.Draft202012Validator(schema).validate(json.loads(answer))
        assert name != "anything" or answer.startswith("{")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_held_is_refused_by_name(codecs: Any, name: str) -> None:
    schema, said = REFUSED[name]
    with pytest.raises(InvalidSchema, match=said) as caught:
        codecs().grammar(LlmChat(messages=[USER], schema=schema))
    assert caught.value.fix


@pytest.mark.parametrize("name", ["unique", "not", "if", "contains", "dependent", "multiple of a number"])
def test_tools_keep_what_their_own_framework_checks(codecs: Any, name: str) -> None:
    """Arguments are held as far as can be: a set-valued argument must not make a tool useless."""
    parameters = {"type": "object", "properties": {"x": REFUSED[name][0]}, "required": ["x"]}
    call = LlmChat(messages=[USER], tools=[ToolSpec(name="t", parameters=parameters)], tool_choice="t")
    assert codecs().grammar(call) is not None


def test_a_schema_that_needs_nothing_stays_as_it_is() -> None:
    schema = {"type": "object", "properties": {"a": {"anyOf": [INTEGER, {"type": "null"}]}}, "required": ["a"]}
    before = json.dumps(schema)
    assert narrowed(schema, strict=True) == schema
    assert json.dumps(schema) == before
