"""Numbers end: a model that never tires of digits still comes to the end of its answer."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import torch

from aios_kernel.chat.json_schema import narrowed
from aios_kernel.syscalls import LlmChat, Message, ToolSpec

USER = Message(role="user", content="hi")
INTEGER, NUMBER = {"type": "integer"}, {"type": "number"}


def boxed(schema: dict[str, Any]) -> dict[str, Any]:
    return {"$defs": {"n": {"title": "N", **INTEGER}}, "type": "object", "properties": {"n": schema}, "required": ["n"]}


SCHEMAS: dict[str, dict[str, Any]] = {
    "integer": INTEGER,
    "number": NUMBER,
    "at least": {**INTEGER, "minimum": 0},
    "more than": {**NUMBER, "exclusiveMinimum": 0.5},
    "at most": {**INTEGER, "maximum": 7},
    "number at most": {**NUMBER, "maximum": -7},
    "or nothing": {"type": ["integer", "null"]},
    "at least or nothing": {"type": ["number", "null"], "minimum": 3},
    "one of": {"anyOf": [NUMBER, {"type": "string"}]},
    "two": {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2},
    "referred to": {"$ref": "#/$defs/n"},
    "anything": {},
}


def greedy(codec: Any, grammar: Any, wanted: str, limit: int = 400) -> str:
    """The answer of a model that writes the first of the wanted characters that it may, as long as it may."""
    mask = torch.zeros(1, grammar._ends.shape[1], dtype=torch.int32)
    ranked = [token for character in wanted for token in codec.encode(character)]
    tokens: list[int] = []
    while len(tokens) < limit:
        grammar.fill_mask(mask, 0)
        allowed = {t for t in range(mask.shape[1] * 32) if int(mask[0, t // 32]) >> (t % 32) & 1}
        token = next((token for token in ranked if token in allowed), None)
        if token is None:
            token = min(allowed & codec.end_tokens, default=None) or min(allowed)
        if token in codec.end_tokens:
            return codec.decode(tokens)
        grammar.accept(token)
        tokens.append(token)
    raise AssertionError(f"no end in sight: {codec.decode(tokens)[:80]}")


@pytest.mark.parametrize("wanted", ["7-.e", "0-.e", "-9e.", "1.7e", "7"])
@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_digits_come_to_an_end(codecs: Any, name: str, wanted: str) -> None:
    schema = boxed(SCHEMAS[name])
    answer = greedy(codecs(), codecs().grammar(LlmChat(messages=[USER], schema=schema)), wanted)
    jsonschema.validate(json.loads(answer), schema)
    assert len(answer) < 120


@pytest.mark.parametrize("schema", [INTEGER, NUMBER, {"title": "N", **INTEGER}, {"type": "array", "maxItems": 2}])
def test_without_a_box(codecs: Any, schema: dict[str, Any]) -> None:
    answer = greedy(codecs(), codecs().grammar(LlmChat(messages=[USER], schema=schema)), "[7.e")
    jsonschema.validate(json.loads(answer), schema)


def test_arguments_of_tools_too(codecs: Any) -> None:
    tool = ToolSpec(name="add", parameters=boxed(NUMBER))
    call = LlmChat(messages=[USER], tools=[tool], tool_choice="add")
    assert '"n": ' in greedy(codecs(), codecs().grammar(call), "7.e").replace('"n":7', '"n": 7')


@pytest.mark.parametrize(
    "value", [0, -1, 2**63 - 1, -(2**63), 3.141592653589793, 1e-300, -2.5e17, 6.02214076e23, 0.1, 123456789012.25]
)
def test_what_programs_hold_can_be_said(codecs: Any, value: float) -> None:
    """Narrower than JSON, but no number of 64 bits is lost."""
    codec = codecs()
    for schema in (NUMBER, INTEGER) if isinstance(value, int) else (NUMBER,):
        grammar = codec.grammar(LlmChat(messages=[USER], schema=boxed(schema)))
        for token in [*codec.encode(json.dumps({"n": value})), min(codec.end_tokens)]:
            grammar.accept(token)
        assert grammar.finished()


def test_an_open_range_gets_its_other_end() -> None:
    assert narrowed({**INTEGER, "minimum": 3}, strict=True) == {**INTEGER, "minimum": 3, "maximum": 10**18}
    assert narrowed({**INTEGER, "exclusiveMaximum": 3}, strict=True)["minimum"] == -(10**18)
    assert narrowed({**NUMBER, "minimum": 10**18}, strict=True) == {**NUMBER, "minimum": 10**18}
    assert narrowed({**INTEGER, "minimum": 0, "multipleOf": 5}, strict=True) == {
        **INTEGER, "minimum": 0, "multipleOf": 5,
    }  # fmt: skip
    assert narrowed(INTEGER, strict=True) == INTEGER
