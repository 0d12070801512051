"""Tool calls through templates of every family: as history, as tokens of an answer, and as a grammar allows them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from aios_kernel.chat.codec import TransformersCodec
from aios_kernel.chat.formats import HermesFormat, LlamaFormat, MistralFormat, ToolFormat, detect
from aios_kernel.syscalls import LlmChat, Message, ToolCall, ToolSpec

ADD = ToolSpec(
    name="add",
    description="Adds.",
    parameters={
        "type": "object",
        "properties": {"a": {"type": "integer"}, "note": {"type": "string"}},
        "required": ["a"],
    },
)
SUB = ToolSpec(name="sub", parameters={"type": "object", "properties": {}})

# Templates after the public descriptions of each family's prompt format.
QWEN = """{%- if tools -%}<|start|>system
# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}For each call answer with JSON inside <tool_call></tool_call> tags.<|end|>
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}<|start|>user
<tool_response>
{{ m.content }}
</tool_response><|end|>
{%- else -%}<|start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}
<tool_call>
{"name": {{ c.function.name | tojson }}, "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant
{% endif -%}"""
LLAMA = """{%- for m in messages -%}
{%- if m.role == 'tool' -%}<|start|>ipython
{{ m.content | tojson }}<|end|>
{%- elif m.tool_calls -%}
{%- if m.tool_calls | length != 1 -%}{{ raise_exception('one tool call at a time') }}{%- endif -%}
{%- set c = m.tool_calls[0].function -%}<|start|>assistant
{"name": "{{ c.name }}", "parameters": {{ c.arguments | tojson }}}<|end|>
{%- else -%}<|start|>{{ m.role }}
{% if loop.first and tools %}Answer with {"name": function, "parameters": its arguments}.
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}{{ m.content }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant
{% endif -%}"""
_MISTRAL = """{%- for m in messages -%}
{%- if m.role == 'user' -%}
{%- if tools and loop.last -%}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif -%}
[INST] {{ m.content }}[/INST]
{%- elif m.role == 'tool' -%}
{%- if m.tool_call_id | length != 9 -%}{{ raise_exception('ids have nine characters') }}{%- endif -%}
[TOOL_RESULTS] {"content": {{ m.content | tojson }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]
{%- else -%}{{ m.content }}CALLS<|end|>
{%- endif -%}
{%- endfor -%}"""
MISTRAL = _MISTRAL.replace(
    "CALLS",
    "{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{{ ', ' if not loop.first }}"
    '{"name": {{ c.function.name | tojson }}, "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    "{% endfor %}]{% endif %}",
)
MISTRAL_ARGS = _MISTRAL.replace(
    "CALLS",
    "{% for c in m.tool_calls or [] %}[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"
    "{% endfor %}",
)
FAMILIES: dict[str, tuple[str, ToolFormat]] = {
    "qwen": (QWEN, HermesFormat()),
    "llama": (LLAMA, LlamaFormat()),
    "mistral": (MISTRAL, MistralFormat()),
    "mistral_args": (MISTRAL_ARGS, MistralFormat(args_marker=True)),
}
CALLS = [
    ToolCall(id="call_1", name="add", arguments='{"a": 1, "note": "é \\"q\\" 🙂"}'),
    ToolCall(id="call_2", name="sub", arguments="{}"),
]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def codec(request: pytest.FixtureRequest, family: str) -> TransformersCodec:
    tokenizer = request.getfixturevalue("session_tokenizer")()
    tokenizer.chat_template = FAMILIES[family][0]
    return TransformersCodec(tokenizer, GenerationConfig(), window=4096, width=320)


def told(codec: TransformersCodec, text: str, tools: list[ToolSpec] | None = None) -> tuple[str, list[tuple[str, Any]]]:
    """An answer's text and calls, token by token."""
    stream = codec.stream(LlmChat(messages=[], tools=tools or [ADD, SUB]))
    pieces = [*(stream.push(token) for token in codec.encode(text)), stream.finish()]
    calls = [(call.name, json.loads(call.arguments)) for piece in pieces for call in piece.tool_calls]
    return "".join(piece.text for piece in pieces), calls


def test_the_template_tells_the_format(codec: TransformersCodec, family: str) -> None:
    assert codec._format == FAMILIES[family][1]


def test_unknown_templates_get_the_common_format() -> None:
    for template in ("{{ messages }}", "{% if tools %}{{ tools }}{% endif %}<function=f>"):
        assert detect(template, {}) == HermesFormat(native=False)


def test_calls_and_results_become_history(codec: TransformersCodec) -> None:
    """What the template writes of a call is what the parser of that family reads."""
    messages = [
        Message(role="user", content="go"),
        Message(role="assistant", tool_calls=CALLS),
        *(Message(role="tool", content=f"result {n}", tool_call_id=call.id) for n, call in enumerate(CALLS)),
        Message(role="user", content="and now?"),
    ]
    prompt = codec.decode(codec.encode_chat(LlmChat(messages=messages, tools=[ADD, SUB])))
    assert prompt.index("result 0") < prompt.index("result 1") < prompt.index("and now?")
    assert '"description": "Adds."' in prompt
    found: list[tuple[str, Any]] = []
    for turn in prompt.split("<|end|>"):
        answer = turn.rpartition("<|start|>assistant\n")[2].rpartition("[/INST]")[2].rpartition("[/TOOL_RESULTS]")[2]
        found += told(codec, answer)[1]
    assert found == [(call.name, json.loads(call.arguments)) for call in CALLS]


def test_the_grammar_allows_what_the_parser_reads(codec: TransformersCodec, family: str) -> None:
    form, separators = FAMILIES[family][1], {"qwen": "\n", "llama": "; ", "mistral": None, "mistral_args": ""}
    written = [form.write(call) for call in CALLS]
    if separators[family] is None:
        answer = written[0][:-1] + ", " + written[1].removeprefix("[TOOL_CALLS] [")
    else:
        answer = str(separators[family]).join(written)
    for many in (True, False):
        grammar = codec.grammar(
            LlmChat(messages=[Message("user")], tools=[ADD, SUB], tool_choice="required", parallel_tool_calls=many)
        )
        assert grammar is not None
        tokens = [*codec.encode(answer), min(codec.end_tokens)]
        accepted = 0
        try:
            for token in tokens:
                grammar.accept(token)
                accepted += 1
        except ValueError:
            assert not many
        assert (accepted == len(tokens)) == many
    assert told(codec, answer) == ("", [(call.name, json.loads(call.arguments)) for call in CALLS])


def test_only_the_first_of_several_calls_when_they_must_not_be_parallel(codec: TransformersCodec, family: str) -> None:
    form = FAMILIES[family][1]
    call = LlmChat(messages=[], tools=[ADD, SUB], parallel_tool_calls=False)
    answer = {"llama": "; ".join, "mistral": lambda parts: parts[0]}.get(family, "\n".join)(
        [form.write(call) for call in CALLS]
    )
    stream = codec.stream(call)
    pieces = [*(stream.push(token) for token in codec.encode(answer)), stream.finish()]
    assert [call.name for piece in pieces for call in piece.tool_calls] == ["add"]


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=2),
    max_leaves=6,
)
MARKERS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>")


@pytest.mark.parametrize("form", [form for _, form in FAMILIES.values()], ids=list(FAMILIES))
@pytest.mark.parametrize("ascii_only", [True, False])
def test_every_call_survives_every_format(form: ToolFormat, ascii_only: bool) -> None:
    @given(st.dictionaries(st.text("abcé", min_size=1, max_size=4), VALUES, max_size=3), st.data())
    @settings(max_examples=60, deadline=None)
    def survives(arguments: dict[str, Any], data: st.DataObject) -> None:
        text = json.dumps(arguments, ensure_ascii=ascii_only)
        if any(marker in text for marker in MARKERS):
            return
        written = form.write(ToolCall(id="x", name="add", arguments=text))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=6)))
        parser = form.parser()
        pieces = [parser.push(written[low:high]) for low, high in zip([0, *cuts], [*cuts, len(written)], strict=True)]
        pieces.append(parser.finish())
        (call,) = [call for piece in pieces for call in piece.tool_calls]
        assert (call.name, json.loads(call.arguments)) == ("add", arguments)
        assert call.arguments == text  # as the model wrote it
        assert "".join(piece.text for piece in pieces) == ""

    survives()


@pytest.mark.parametrize("form", [form for _, form in FAMILIES.values()], ids=list(FAMILIES))
def test_what_json_lets_pass_can_still_be_sent(form: ToolFormat) -> None:
    """Half a surrogate pair stays an escape; raw control characters and numbers beyond all bounds do no harm."""
    for arguments in ('{"a": "\\ud83d"}', '{"a": "x\ty"}', '{"a": 1e999}', '{"a": 123456789012345678901234567890}'):
        parser = form.parser()
        pieces = [parser.push(form.write(ToolCall(id="x", name="add", arguments=arguments))), parser.finish()]
        (call,) = [call for piece in pieces for call in piece.tool_calls]
        assert call.arguments.encode()
        json.loads(call.arguments)
    parser = form.parser()
    pieces = [parser.push(form.write(ToolCall(id="x", name="add", arguments="[1]"))), parser.finish()]
    assert not any(piece.tool_calls for piece in pieces)
    assert "".join(piece.text for piece in pieces) == form.write(ToolCall(id="x", name="add", arguments="[1]"))


def test_the_vocabulary_tells_what_the_template_does_not() -> None:
    template = "{% if tools %}{{ tools }}{% endif %}"
    assert detect(template, {"[TOOL_CALLS]": 5}) == MistralFormat()
    assert detect(template, {"[TOOL_CALLS]": 5, "[ARGS]": 6}) == MistralFormat(args_marker=True)
    assert detect(template, {"<|python_tag|>": 5}) == LlamaFormat()


def test_mistral_ids_between_name_and_arguments() -> None:
    parser = MistralFormat(args_marker=True).parser()
    pieces = [parser.push('[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"a": 1}'), parser.finish()]
    assert [(call.name, call.arguments) for piece in pieces for call in piece.tool_calls] == [("add", '{"a": 1}')]
