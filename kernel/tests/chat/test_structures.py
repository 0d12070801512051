"""Regular expressions and choices; what contradicts itself; grammars that take too long or too much."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest

from aios_kernel.chat import grammar as grammar_module
from aios_kernel.chat import grammar_compiler
from aios_kernel.chat.grammar_cache import GrammarCache
from aios_kernel.errors import Busy, InvalidRequest, InvalidSchema
from aios_kernel.syscalls import LlmChat, Message, ToolSpec

USER = Message(role="user", content="hi")
TOOL = ToolSpec(name="add", parameters={"type": "object", "properties": {"a": {"type": "integer"}}})


def takes(codec: Any, grammar: Any, text: str) -> bool:
    """Whether the text is a whole answer."""
    grammar = grammar.fork()
    try:
        for token in [*codec.encode(text), min(codec.end_tokens)]:
            grammar.accept(token)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "pattern", [r"\d{3}-\d{4}", "^(yes|no)$", "[a-c]+x?", "é|🙂{2}", "a\tb", r"(?:ab)*c", r"[^\n]{1,4}", "|x"]
)
def test_an_expression_is_matched_as_a_whole(codecs: Any, pattern: str) -> None:
    codec = codecs()
    grammar = codec.grammar(LlmChat(messages=[USER], regex=pattern))
    texts = [
        "123-4567",
        "123-456",
        "yes",
        "no ",
        "abcx",
        "abc",
        "x",
        "é",
        "🙂🙂",
        "🙂",
        "a\tb",
        "ababc",
        "c",
        "a b",
        "",
    ]
    for text in texts:
        assert takes(codec, grammar, text) == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize(
    "choice", [["yes", "no", "yes"], ["a", "ab", "abc"], ["é 🙂"], ["a\tb\n", 'say "x"'], ["\\d+"]]
)
def test_a_choice_is_one_of_its_strings(codecs: Any, choice: list[str]) -> None:
    codec = codecs()
    grammar = codec.grammar(LlmChat(messages=[USER], choice=choice))
    assert all(takes(codec, grammar, text) for text in choice)
    assert not any(takes(codec, grammar, text) for text in ("", "y", "yesno", "abcd", "é", "say x", "7"))


def test_tools_may_be_called_instead(codecs: Any) -> None:
    codec = codecs()
    for structure in ({"regex": "[a-z]+"}, {"choice": ["yes"]}):
        grammar = codec.grammar(LlmChat(messages=[USER], tools=[TOOL], **structure))
        assert takes(codec, grammar, "yes")
        assert takes(codec, grammar, '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>')
        assert not takes(codec, grammar, "<tool_call>")


@pytest.mark.parametrize("pattern", ["([", r"[^\s\S]", "(?=a)b", r"(a)\1", "", "x{3,2}", r"\bfoo"])
def test_malformed_and_impossible_expressions_are_refused(codecs: Any, pattern: str) -> None:
    with pytest.raises(InvalidSchema, match="cannot be compiled") as caught:
        codecs().grammar(LlmChat(messages=[USER], regex=pattern))
    assert caught.value.fix
    assert "Check failed" not in caught.value.message


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"regex": "a", "choice": ["a"]}, "regex and choice"),
        ({"schema": {}, "regex": "a"}, "schema and regex"),
        ({"regex": "a", "tools": [TOOL], "tool_choice": "required"}, "regex asks for text"),
        ({"choice": ["a"], "tools": [TOOL], "tool_choice": "add"}, "choice asks for text"),
        ({"choice": ["a", ""]}, "empty"),
    ],
)
def test_contradictions_are_refused(codecs: Any, call: dict[str, Any], said: str) -> None:
    for ask in (codecs().encode_chat, codecs().grammar):
        with pytest.raises(InvalidRequest, match=said) as caught:
            ask(LlmChat(messages=[USER], **call))
        assert caught.value.fix


def test_a_schema_may_stand_beside_required_tools(codecs: Any) -> None:
    """Frameworks send both; the call is what is required now."""
    codec = codecs()
    grammar = codec.grammar(LlmChat(messages=[USER], tools=[TOOL], tool_choice="required", schema={}))
    assert not takes(codec, grammar, "{}")


# --- bounds ---------------------------------------------------------------------------------------------------------


class Slow:
    """A compiler that holds every compilation until it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def compile_structural_tag(self, tag: str) -> Any:
        self.gate.wait()
        raise RuntimeError("nobody waits any more")


def test_a_compilation_that_takes_too_long_is_given_up(make_codec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, slow = make_codec(), Slow()
    monkeypatch.setattr(grammar_compiler, "_COMPILE_S", 0.05)
    monkeypatch.setattr(codec._grammars, "_for_text", slow)
    for number in range(2):
        with pytest.raises(InvalidSchema, match="more than"):
            codec.grammar(LlmChat(messages=[USER], regex=f"a{number}"))
    with pytest.raises(Busy) as caught:  # both places are taken by compilations that nobody can stop
        codec.grammar(LlmChat(messages=[USER], regex="b"))
    assert caught.value.retry_after_s
    slow.gate.set()
    monkeypatch.undo()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert codec.grammar(LlmChat(messages=[USER], regex="b")) is not None
            return
        except Busy:
            time.sleep(0.01)
    pytest.fail("the places were never given back")


def test_a_big_schema_compiles_beside_other_work(codecs: Any) -> None:
    """Other threads run meanwhile: the socket loop, and the engine's."""
    ticks, stop = [0], threading.Event()

    def tick() -> None:
        while not stop.wait(0.001):
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    began = time.monotonic()
    codecs().grammar(LlmChat(messages=[USER], schema={"enum": [f"value{n}x{n * 7}" for n in range(4000)]}))
    took = time.monotonic() - began
    stop.set()
    thread.join()
    assert ticks[0] >= took / 0.02


def test_a_token_that_takes_too_long_ends_its_own_answer(codecs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = codecs().grammar(LlmChat(messages=[USER], regex="((a|b)*(c|d)*)*e"))
    monkeypatch.setattr(grammar_module, "_MOST_S", -1.0)
    token = codecs().encode("a")[0]
    for _ in range(3):  # a busy machine may be the cause
        grammar.accept(token)
    with pytest.raises(RuntimeError, match="ambiguous"):
        grammar.accept(token)


class Compiled:
    """What the cache knows of a compiled grammar."""

    def __init__(self, size: int) -> None:
        self.memory_size_bytes = size


def test_the_cache_keeps_what_was_used_last() -> None:
    cache = GrammarCache(most=3, most_bytes=100)
    for name in "abc":
        cache.put(name, Compiled(10))
    assert cache.get("a") is not None
    cache.put("d", Compiled(10))
    assert [name for name in "abcd" if cache.get(name) is not None] == ["a", "c", "d"]


def test_the_cache_is_bounded_in_bytes() -> None:
    cache = GrammarCache(most=100, most_bytes=100)
    cache.put("huge", Compiled(101))
    assert len(cache) == 0
    for number in range(20):
        cache.put(str(number), Compiled(30))
        assert len(cache) <= 3
    cache.put("19", Compiled(30))
    assert len(cache) == 3


def test_the_same_call_is_compiled_once(make_codec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = make_codec()
    call = LlmChat(messages=[USER], schema={"type": "object"})
    first = codec.grammar(call)
    monkeypatch.setattr(codec._grammars, "_for_json", None)
    second = codec.grammar(call)
    first.accept(codec.encode("{")[0])
    assert takes(codec, second, "{}")
