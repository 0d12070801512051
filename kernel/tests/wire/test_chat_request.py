"""Reading Chat Completions requests."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aios_kernel.errors import AiosError, InvalidRequest, Unsupported
from aios_kernel.openai_wire import CHAT_INERT, ChatExchange, chat_messages, chat_schema, chat_tool_choice, chat_tools
from aios_kernel.openai_wire.chat_request import read_chat_request
from aios_kernel.syscalls import Message, ToolCall, ToolSpec

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Judge the code and not how busy the machine is."""


def read(**fields: Any) -> Any:
    return read_chat_request({"messages": HELLO, **fields})


@PROPERTY
@given(st.data())
def test_every_chat_survives_the_wire(wire: Any, data: st.DataObject) -> None:
    call = data.draw(wire.chats())
    assert read_chat_request(wire.chat_body(call)).call == call


@PROPERTY
@given(
    st.dictionaries(
        st.sampled_from(["messages", "tools", "tool_choice", "stop", "response_format", "stream_options", "n", "seed"]),
        JSON,
    )
)
def test_no_body_raises_anything_but_our_errors(body: dict[str, Any]) -> None:
    with contextlib.suppress(AiosError):
        ChatExchange(body)


@pytest.mark.parametrize("body", [None, [], "x", 3])
def test_a_body_must_be_an_object(body: Any) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        ChatExchange(body)


def test_developer_messages_and_parts_are_text() -> None:
    call = read(
        messages=[
            {"role": "developer", "content": "be kind", "name": "boss"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ]
    ).call
    assert call.messages == [Message("system", "be kind"), Message("user", "a\nb")]


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    came = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
    }
    call = read(messages=[*HELLO, came, {"role": "tool", "tool_call_id": "c1", "content": "sun"}]).call
    assert call.messages[1:] == [
        Message("assistant", tool_calls=[ToolCall("c1", "weather", "{}")]),
        Message("tool", "sun", tool_call_id="c1", name="weather"),
    ]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, r"structured_outputs\.grammar"),
        ({"guided_grammar": "root ::= x"}, "guided_grammar"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"stream_options": {"shape": 1}}, "stream_options.shape"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "custom"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "allowed_tools"),
        ({"response_format": {"type": "grammar"}}, "grammar"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "function"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]}, "image_url"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input_audio"),
        ({"messages": [{"role": "user", "content": "x", "mood": "gay"}]}, r"messages\[0\]\.mood"),
    ],
)
def test_what_is_not_served_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(Unsupported, match=named) as caught:
        read(**fields)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, r"messages\[0\]"),
        ({"messages": [{"role": "user", "content": 3}]}, "content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"messages": [{"content": "x"}]}, "role"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 10**400}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"seed": "x"}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"prompt_logprobs": 50}, "prompt_logprobs"),
        ({"logit_bias": {"a": 1}}, r"logit_bias\.a"),
        ({"logit_bias": {"-1": 1}}, r"logit_bias\.-1"),
        ({"logit_bias": {"9" * 30: 1}}, "token id"),
        ({"logit_bias": {"1": 101}}, r"logit_bias\.1"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"guided_choice": ["a", ""]}, r"guided_choice\[1\]"),
        ({"structured_outputs": {"choice": "a"}}, r"structured_outputs\.choice"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "several structures"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "several structures"),
        ({"stop": [""]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"model": 3}, "model"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\]\.function"),
        ({"tools": [WEATHER, WEATHER]}, "weather"),
        ({"tool_choice": "required"}, "no tools"),
        ({"tool_choice": "sometimes"}, "sometimes"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}}, '"f"'),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "schema"),
    ],
)
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        read(**fields)


def test_inert_and_neutral_fields_change_nothing() -> None:
    neutral = {"n": 1, "logit_bias": {}, "modalities": ["text"], "structured_outputs": {}}
    assert read(**neutral, **dict.fromkeys(CHAT_INERT, "x"), audio=None).call == read().call


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"guided_json": {"type": "null"}}, {"schema": {"type": "null"}}),
        ({"structured_outputs": {"json": {}}}, {"schema": {}}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
    ],
)
def test_structures_have_several_spellings(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    call = read(**fields).call
    assert {"schema": call.schema, "regex": call.regex, "choice": call.choice} == {
        "schema": None,
        "regex": None,
        "choice": [],
        **expected,
    }


def test_all_tokens_have_two_spellings() -> None:
    assert read(top_k=-1).call.sampling.top_k == read(top_k=0).call.sampling.top_k == 0


def test_usage_chunk_is_asked_for() -> None:
    assert read(stream=True, stream_options={"include_usage": True, "include_obfuscation": False}).include_usage
    assert not read(stream=True).include_usage


def test_a_tool_named_like_a_mode_cannot_be_chosen() -> None:
    tool = {"type": "function", "function": {"name": "none"}}
    with pytest.raises(Unsupported, match="rename the tool"):
        read(tools=[tool], tool_choice={"type": "function", "function": {"name": "none"}})


def test_pieces_are_read_by_themselves() -> None:
    tools = chat_tools([WEATHER])
    assert tools == [ToolSpec("weather", "", {"type": "object"})]
    assert chat_tool_choice({"type": "function", "function": {"name": "weather"}}, tools) == "weather"
    assert chat_tool_choice(None, tools) == "auto"
    assert chat_messages(HELLO) == [Message("user", "hello")]
    assert chat_schema({"type": "json_object"}) == {}
    assert chat_schema(None) is None
