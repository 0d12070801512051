"""Masks that are made beside the forward change no token, and a grammar that fails there fails alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aios_kernel.chat.grammar import MatcherGrammar
from aios_kernel.engine.load import load_model
from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch.masks import Lookahead
from aios_kernel.syscalls import LlmChat, Message

REGEX = "[a-f]{3}-[0-9]{2}(x|yz)*"
STEPS = 14


@pytest.fixture(scope="module")
def demo() -> Any:
    torch.set_num_threads(1)
    return load_model("demo", device="cpu", kv_tokens=4096)


def answers(demo: Any, monkeypatch: pytest.MonkeyPatch, *, ahead: bool, break_at: int | None = None) -> list[Any]:
    """What eight contexts say, of which two have no grammar and three are sampled; None: it failed."""
    monkeypatch.setattr(Lookahead, "_has_processor", lambda _self: ahead)
    engine, codec = demo.engine, demo.codec
    call = LlmChat(messages=[Message("user", "sing")], regex=REGEX)
    contexts: list[Any] = []
    for number in range(8):
        sampling = SamplingParams(temperature=0.8 if number % 3 == 0 else 0.0, seed=number)
        grammar = codec.grammar(call) if number not in {2, 5} else None
        prompt = codec.encode_chat(LlmChat(messages=[Message("user", f"sing {number}")]))
        contexts.append(engine.open(prompt, sampling=sampling, grammar=grammar, salt=bytes([ahead])))
    failed: set[int] = set()
    for step in range(STEPS):
        if step == break_at:
            grammar = contexts[4].grammar
            grammar._catch_up()
            grammar.accept_later(min(codec.encode("!")))  # not allowed: the claim was wrong
        live = [row for row in range(8) if row not in failed]
        for row, output in zip(live, engine.step([(contexts[row], 500) for row in live]), strict=True):
            if output.error is not None:
                failed.add(row)
    # Behind an end token nobody asks any longer.
    said = [
        None if row in failed else codec.decode(context.tokens[context.prompt :]).split("<|end|>")[0]
        for row, context in enumerate(contexts)
    ]
    for context in contexts:
        engine.release(context)
    return said


def test_tokens_are_the_same_with_and_without(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_them = answers(demo, monkeypatch, ahead=True)
    assert with_them == answers(demo, monkeypatch, ahead=False)
    assert all(text[3] == "-" for row, text in enumerate(with_them) if row not in {2, 5})


@pytest.mark.parametrize("ahead", [True, False])
def test_one_that_fails_beside_the_forward_fails_alone(demo: Any, monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
    whole = answers(demo, monkeypatch, ahead=ahead)
    broken = answers(demo, monkeypatch, ahead=ahead, break_at=5)
    assert broken == [*whole[:4], None, *whole[5:]]


def test_grammars_that_are_slow_together_are_watched_one_by_one(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = LlmChat(messages=[Message("user", "sing")], regex=REGEX)
    grammars = [demo.codec.grammar(call) for _ in range(3)]
    mask = torch.zeros(3, -(-demo.engine.vocab // 32), dtype=torch.int32)
    monkeypatch.setattr("aios_kernel.chat.grammar._MOST_S", -1.0)
    assert MatcherGrammar.fill_masks(grammars, mask) == {}
    errors: dict[int, str] = {}
    for _ in range(4):
        errors = MatcherGrammar.fill_masks(grammars, mask)
    assert sorted(errors) == [0, 1, 2]
    assert "ambiguous" in errors[0]


def test_a_token_that_is_due_is_part_of_the_state(demo: Any) -> None:
    grammar = demo.codec.grammar(LlmChat(messages=[Message("user", "sing")], regex="ab"))
    (first,) = demo.codec.encode("a")[:1]
    if demo.codec.decode([first]) != "a":
        pytest.skip("the tokenizer has no such token")
    grammar.accept_later(first)
    twin, loaded = grammar.fork(), demo.codec.load_grammar(grammar.dump())
    masks = torch.zeros(3, -(-demo.engine.vocab // 32), dtype=torch.int32)
    for row, each in enumerate((grammar, twin, loaded)):
        each.fill_mask(masks, row)
        assert not each.finished()
    assert masks[0].tolist() == masks[1].tolist() == masks[2].tolist()
