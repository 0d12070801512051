"""Text and tool calls out of tokens, however they are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_kernel.chat.formats import HermesFormat, LlamaFormat, MistralFormat
from aios_kernel.chat.protocol import TextPiece
from aios_kernel.syscalls import LlmChat, Message, ToolSpec

PLAIN_CALL = LlmChat(messages=[Message(role="user", content="hi")])
TOOL_CALL = LlmChat(messages=PLAIN_CALL.messages, tools=[ToolSpec(name="add")])
FORMATS = {
    "hermes": HermesFormat(),
    "llama": LlamaFormat(),
    "mistral": MistralFormat(),
}
ADD = '{"name": "add", "arguments": {"a": 1, "b": "é"}}'
ANSWERS = {
    "hermes": [
        (f"Sure.\n<tool_call>\n{ADD}\n</tool_call>", "Sure.\n", ["add"]),
        (f"<tool_call>{ADD}</tool_call>\n<tool_call>{ADD}</tool_call>\n", "", ["add", "add"]),
        (f"<tool_call>{ADD}", "", ["add"]),  # the end marker never came
        ("<tool_call>{broken}</tool_call> and more", "<tool_call>{broken}</tool_call> and more", []),
        (f"<tool_call>[1]</tool_call><tool_call>{ADD}</tool_call>", "<tool_call>[1]</tool_call>", ["add"]),
        (f'<tool_call>{{"name": "x</tool_call><tool_call>{ADD}', '<tool_call>{"name": "x</tool_call>', ["add"]),
        ('<tool_call>{"name": "add", "arguments": {"a": "</tool_call>"}}</tool_call>', "", ["add"]),
        ('<tool_call>{"name": "add"}</tool_call>', "", ["add"]),
        ("<tool_call>", "<tool_call>", []),
        ("a < b <tool_cal", "a < b <tool_cal", []),
        ("  \n ", "  \n ", []),
    ],
    "llama": [
        ('{"name": "add", "parameters": {"a": 1}}', "", ["add"]),
        (' <|python_tag|>{"name": "add", "parameters": {}}; {"name": "sub", "parameters": {}}', "", ["add", "sub"]),
        ('{"answer": 42}', '{"answer": 42}', []),
        (
            '{"name": "add", "parameters": {"a": 1}} is the call',
            '{"name": "add", "parameters": {"a": 1}} is the call',
            [],
        ),
        ("It is 42. {", "It is 42. {", []),
        ("<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
        ("<|py", "<|py", []),
    ],
    "mistral": [
        (f"Well[TOOL_CALLS] [{ADD}, {ADD}]", "Well", ["add", "add"]),
        ('[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]sub[ARGS]{}', "", ["add", "sub"]),
        ("[TOOL_CALLS] [{]", "[TOOL_CALLS] [{]", []),
        (f"[TOOL_CALLS] [{ADD}, 3]", f"[TOOL_CALLS] [{ADD}, 3]", []),
        ("[TOOL_CAL", "[TOOL_CAL", []),
    ],
}
CASES = [(style, *answer) for style, answers in ANSWERS.items() for answer in answers]


def join(pieces: list[TextPiece]) -> tuple[str, list[tuple[str, Any]]]:
    calls = [call for piece in pieces for call in piece.tool_calls]
    assert len({call.id for call in calls}) == len(calls)
    assert all(call.id.startswith("call_") for call in calls)
    return "".join(piece.text for piece in pieces), [(call.name, json.loads(call.arguments)) for call in calls]


def parse(style: str, parts: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    parser = FORMATS[style].parser()
    return join([*(parser.push(part) for part in parts), parser.finish()])


@pytest.mark.parametrize(("style", "answer", "text", "names"), CASES)
def test_calls_are_found_and_the_rest_is_text(style: str, answer: str, text: str, names: list[str]) -> None:
    found, calls = parse(style, [answer])
    assert (found, [name for name, _ in calls]) == (text, names)


def test_arguments_survive() -> None:
    _, calls = parse("hermes", [f"<tool_call>{ADD}</tool_call>"])
    assert calls == [("add", {"a": 1, "b": "é"})]
    as_text = '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>'
    assert parse("hermes", [as_text])[1] == [("add", {"a": 1})]


FRAGMENTS = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|python_tag|>",
        ADD,
        f"[{ADD}]",
        "add",
        " ",
        "\n",
        "{",
        "}",
        '"',
        "x",
        "; ",
        '{"name": "sub", "parameters": {}}',
        "</tool_ca",
        "[TOOL",
    ]
)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_cuts_do_not_matter_and_text_is_never_lost(data: st.DataObject) -> None:
    style = data.draw(st.sampled_from(sorted(FORMATS)))
    answer = "".join(data.draw(st.lists(FRAGMENTS, max_size=12)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=10)))
    parts = [answer[low:high] for low, high in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    whole = parse(style, [answer])
    assert parse(style, parts) == whole
    assert parse(style, list(answer)) == whole
    if not whole[1]:
        assert whole[0] == answer


def test_text_streams_before_a_call_is_complete() -> None:
    parser = HermesFormat().parser()
    assert parser.push("Let me see. <tool").text == "Let me see. "
    assert parser.push("box>").text == "<toolbox>"


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_every_text_survives_streaming(codecs: Any, kind: str) -> None:
    codec = codecs(kind)

    @given(TEXTS)
    @settings(max_examples=200, deadline=None)
    def survives(text: str) -> None:
        for marker in ("<|start|>", "<|end|>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"):
            text = text.replace(marker, "")
        stream = codec.stream(PLAIN_CALL)
        pieces = [stream.push(token).text for token in codec.encode(text)] + [stream.finish().text]
        # SentencePiece tokenizers cannot tell a text from the same with a space before it.
        assert "".join(pieces) == (text if kind == "byte_level" else text.removeprefix(" "))

    survives()


def test_a_character_is_never_split(codecs: Any) -> None:
    codec = codecs()
    tokens = codec.encode("a🙂é")
    assert len(tokens) == 6
    stream = codec.stream(PLAIN_CALL)
    shown = [stream.push(token).text for token in tokens]
    assert shown == ["a", "", "", "", "🙂", "é"]
    stream = codec.stream(PLAIN_CALL)
    assert "".join(stream.push(token).text for token in tokens[:3]) + stream.finish().text == "a\ufffd"


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        ("hermes", f"Yes <tool_call>\n{ADD}\n</tool_call>"),
        ("mistral", f"Yes [TOOL_CALLS] [{ADD}]"),
        ("mistral_args", 'Yes [TOOL_CALLS]add[ARGS]{"a": 1, "b": "é"}'),
        ("no_tools", f"Yes <tool_call>\n{ADD}\n</tool_call>"),
    ],
)
def test_from_tokens_to_calls(codecs: Any, template: str, answer: str) -> None:
    codec = codecs("byte_level", template)
    stream = codec.stream(TOOL_CALL)
    pieces = [*(stream.push(token) for token in codec.encode(answer)), stream.finish()]
    assert join(pieces) == ("Yes ", [("add", {"a": 1, "b": "é"})])


def test_without_tools_everything_is_text(codecs: Any) -> None:
    codec = codecs()
    answer = f"<tool_call>{ADD}</tool_call>"
    for call in (PLAIN_CALL, LlmChat(messages=TOOL_CALL.messages, tools=TOOL_CALL.tools, tool_choice="none")):
        stream = codec.stream(call)
        pieces = [*(stream.push(token) for token in codec.encode(answer)), stream.finish()]
        assert join(pieces) == (answer, [])


def test_special_tokens_are_not_shown(codecs: Any) -> None:
    codec = codecs()
    stream = codec.stream(PLAIN_CALL)
    tokens = codec.encode("a<|start|>b")
    assert len(tokens) == 3
    assert "".join(stream.push(token).text for token in tokens) == "ab"
    assert codec.decode(tokens) == "a<|start|>b"


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("template", ["hermes", "llama", "mistral_args", "no_tools"])
def test_tokens_taken_at_once_say_the_same(codecs: Any, kind: str, template: str) -> None:
    codec = codecs(kind, template)

    @given(st.lists(FRAGMENTS, max_size=10), st.integers(0, 60), st.booleans(), st.booleans())
    @settings(max_examples=60, deadline=None)
    def same(parts: list[str], cut: int, tools: bool, many: bool) -> None:
        call = LlmChat(messages=PLAIN_CALL.messages, tools=TOOL_CALL.tools if tools else [], parallel_tool_calls=many)
        tokens = codec.encode("🙂" + "".join(parts))
        slowly, at_once = codec.stream(call), codec.stream(call)
        pieces = [*(slowly.push(token) for token in tokens), slowly.finish()]
        assert join([at_once.push_all(tokens[:cut]), at_once.push_all(tokens[cut:]), at_once.finish()]) == join(pieces)

    same()
