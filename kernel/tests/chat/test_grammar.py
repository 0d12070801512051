"""Answers under a grammar, by random walks of its masks: whatever is allowed must be right."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
import torch

from aios_kernel.errors import InvalidSchema
from aios_kernel.syscalls import LlmChat, Message, ToolSpec

USER = Message(role="user", content="hi")
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    {
        "type": "object",
        "properties": {
            "kind": {"enum": ["a", "b"]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        },
        "required": ["kind", "tags"],
    },
    {"type": "object", "properties": {"x": {"$ref": "#/$defs/p"}}, "required": ["x"], "$defs": {"p": {"type": "null"}}},
    {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 3}]},
]
TOOLS = [
    ToolSpec(name="add", parameters=SCHEMAS[0]),
    ToolSpec(name="mark", parameters=SCHEMAS[1]),
    ToolSpec(name="stop"),
]


def walk(codec: Any, call: LlmChat, seed: int, limit: int = 400) -> list[int] | None:
    """Allowed tokens at random, the shortest way home after a while; None if the end was not reached."""
    chooser = random.Random(seed)
    grammar = codec.grammar(call)
    tokens: list[int] = []
    mask = torch.full((1, codec._grammars._ends.shape[1]), -1, dtype=torch.int32)
    closing = codec.encode('}]"') + sorted(codec.end_tokens)
    while len(tokens) < limit:
        grammar.fill_mask(mask, 0)
        words = mask[0].tolist()
        allowed = [t for t in range(len(words) * 32) if words[t // 32] >> (t % 32) & 1]
        if grammar.finished():
            assert set(allowed) <= codec.end_tokens
        home = [token for token in closing if token in allowed]
        token = home[-1] if home and chooser.random() < 0.5 + len(tokens) / limit else chooser.choice(allowed)
        grammar.accept(token)
        if token in codec.end_tokens:
            assert grammar.finished()
            return tokens
        tokens.append(token)
    return None


def answers(codec: Any, call: LlmChat, n: int = 15) -> list[str]:
    walks = [walk(codec, call, seed) for seed in range(n)]
    ended = [codec.decode(tokens) for tokens in walks if tokens is not None]
    assert len(ended) >= n // 2
    return ended


@pytest.mark.parametrize("schema", SCHEMAS)
def test_whatever_ends_satisfies_the_schema(codecs: Any, schema: dict[str, Any]) -> None:
    for answer in answers(codecs(), LlmChat(messages=[USER], schema=schema)):
        jsonschema.validate(json.loads(answer), schema)


def test_the_empty_schema_means_any_object(codecs: Any) -> None:
    found = [json.loads(answer) for answer in answers(codecs(), LlmChat(messages=[USER], schema={}), n=30)]
    assert all(isinstance(value, dict) for value in found)
    assert any(found)


@pytest.mark.parametrize("template", ["hermes", "llama", "mistral", "mistral_args", "no_tools"])
@pytest.mark.parametrize("choice", ["required", "mark"])
def test_forced_tool_calls_parse_and_fit(codecs: Any, template: str, choice: str) -> None:
    codec = codecs("byte_level", template)
    call = LlmChat(messages=[USER], tools=TOOLS, tool_choice=choice)
    parameters = {tool.name: tool.parameters for tool in TOOLS}
    for seed in range(10):
        tokens = walk(codec, call, seed)
        if tokens is None:
            continue
        stream = codec.stream(call)
        pieces = [*(stream.push(token) for token in tokens), stream.finish()]
        calls = [made for piece in pieces for made in piece.tool_calls]
        assert "".join(piece.text for piece in pieces) == ""
        assert calls
        assert choice == "required" or [made.name for made in calls] == [choice]
        for made in calls:
            jsonschema.validate(json.loads(made.arguments), parameters[made.name])


def test_one_call_when_parallel_ones_are_off(codecs: Any) -> None:
    call = LlmChat(messages=[USER], tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert all(answer.count("<tool_call>") == 1 for answer in answers(codecs(), call))


def test_schema_and_tools_allow_either(codecs: Any) -> None:
    call = LlmChat(messages=[USER], tools=TOOLS, schema=SCHEMAS[0])
    for answer in (b'{"n": 1}', b'<tool_call>\n{"name": "add", "arguments": {"n": 1}}\n</tool_call>'):
        grammar = codecs().grammar(call)
        for token in codecs().encode(answer.decode()):
            grammar.accept(token)
        grammar.accept(min(codecs().end_tokens))
        assert grammar.finished()


def test_no_grammar_when_nothing_is_demanded(codecs: Any) -> None:
    assert codecs().grammar(LlmChat(messages=[USER], tools=TOOLS)) is None


@pytest.mark.parametrize(
    "schema", [{"type": "banana"}, {"properties": 5}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "(["}]
)
def test_impossible_schemas_are_refused(codecs: Any, schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidSchema, match="cannot be compiled") as caught:
        codecs().grammar(LlmChat(messages=[USER], schema=schema))
    assert "/cpp/" not in caught.value.message


def test_a_fork_goes_its_own_way(codecs: Any) -> None:
    grammar = codecs().grammar(LlmChat(messages=[USER], schema=SCHEMAS[0]))
    (brace,) = codecs().encode("{")
    grammar.accept(brace)
    twin = grammar.fork()
    twin.accept(codecs().encode('"')[0])
    with pytest.raises(ValueError, match="not allowed"):
        grammar.accept(brace)
    grammar.accept(codecs().encode('"')[0])


def test_special_tokens_are_not_text(codecs: Any) -> None:
    grammar = codecs().grammar(LlmChat(messages=[USER], schema={"type": "string"}))
    grammar.accept(codecs().encode('"')[0])
    with pytest.raises(ValueError, match="not allowed"):
        grammar.accept(codecs().encode("<|start|>")[0])
