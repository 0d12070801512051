"""A grammar written down in the middle of an answer and made again goes on as if nothing had happened."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from aios_kernel.syscalls import LlmChat, Message, ToolSpec

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "n": {"type": "array", "items": {"type": "integer"}, "maxItems": 3}},
    "required": ["kind", "n"],
}
USER = Message(role="user", content="hi")
CALLS = {
    "schema": LlmChat(messages=[USER], schema=SCHEMA),
    "tool": LlmChat(messages=[USER], tools=[ToolSpec(name="mark", parameters=SCHEMA)], tool_choice="required"),
}


def allowed(grammar: Any, width: int) -> list[int]:
    mask = torch.full((1, -(-width // 32)), -1, dtype=torch.int32)
    grammar.fill_mask(mask, 0)
    bits = (mask[0][:, None] >> torch.arange(32, dtype=torch.int32)) & 1
    return bits.reshape(-1)[:width].nonzero()[:, 0].tolist()


@pytest.fixture
def codec(codecs: Any) -> Any:
    return codecs()


@pytest.mark.parametrize("kind", sorted(CALLS))
@pytest.mark.parametrize("seed", range(3))
def test_a_loaded_grammar_allows_the_same(codec: Any, kind: str, seed: int) -> None:
    width, chooser = 32 * len(codec.grammar(CALLS[kind])._ends[0]), random.Random(seed)
    grammar = again = codec.grammar(CALLS[kind])
    for step in range(60):
        tokens = allowed(grammar, width)
        assert tokens == allowed(again, width)
        assert grammar.finished() == again.finished()
        token = chooser.choice(tokens)
        grammar.accept(token)
        if step % 5 == 0:
            again = codec.load_grammar(grammar.dump())
            assert again.dump() == grammar.dump()
        else:
            again = again.fork()
            again.accept(token)
        if token in codec.end_tokens:
            break


@pytest.mark.parametrize("text", ["", "{}", '{"tag": "no", "tokens": []}', '{"tag": 1, "tokens": []}'])
def test_what_is_no_grammar_is_refused(codec: Any, text: str) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        codec.load_grammar(text)
