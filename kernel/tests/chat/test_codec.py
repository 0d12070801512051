"""Prompts, defaults, end tokens and bad requests."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig

from aios_kernel.chat.codec import TransformersCodec
from aios_kernel.errors import ConfigError, InvalidRequest
from aios_kernel.syscalls import LlmChat, Message, ToolCall, ToolSpec

USER = Message(role="user", content="hi")
ADD = ToolSpec(name="add", description="Adds.", parameters={"type": "object", "properties": {"a": {"type": "integer"}}})


def turn(*calls: ToolCall) -> list[Message]:
    results = [Message(role="tool", content=f"r{call.id}", tool_call_id=call.id) for call in calls]
    return [USER, Message(role="assistant", tool_calls=list(calls)), *results]


def text(codec: Any, **call: Any) -> str:
    call.setdefault("messages", [USER])
    return codec.decode(codec.encode_chat(LlmChat(**call)))


def test_prompt_ends_where_the_answer_begins(codecs: Any) -> None:
    assert text(codecs()) == "<|start|>user\nhi<|end|><|start|>assistant\n"


def test_tools_reach_the_template_unless_none_may_be_called(codecs: Any) -> None:
    assert '"name": "add"' in text(codecs(), tools=[ADD])
    assert "add" not in text(codecs(), tools=[ADD], tool_choice="none")


def test_arguments_of_past_calls_are_objects(codecs: Any) -> None:
    calls = (ToolCall(id="1", name="add", arguments='{"a":1}'), ToolCall(id="2", name="add", arguments="oops"))
    prompt = text(codecs(), messages=turn(*calls), tools=[ADD])
    assert '{"name": "add", "arguments": {"a": 1}}' in prompt
    assert '"arguments": "oops"' in prompt


def test_a_template_of_single_calls_gets_them_one_by_one(codecs: Any) -> None:
    calls = (ToolCall(id="1", name="add", arguments='{"a":1}'), ToolCall(id="2", name="add", arguments='{"a":2}'))
    prompt = text(codecs(template="llama"), messages=turn(*calls), tools=[ADD])
    places = [prompt.index(part) for part in ('{"a": 1}', "r1", '{"a": 2}', "r2")]
    assert places == sorted(places)


def test_mistral_ids_have_nine_characters(codecs: Any) -> None:
    call = ToolCall(id="call_0123456789abcdef", name="add", arguments="{}")
    assert "[TOOL_CALLS]" in text(codecs(template="mistral"), messages=turn(call), tools=[ADD])


def test_a_template_without_tools_is_told_of_them_in_words(codecs: Any) -> None:
    call = ToolCall(id="1", name="add", arguments='{"a": 1}')
    messages = [Message(role="system", content="Be kind."), *turn(call)]
    prompt = text(codecs(template="no_tools"), messages=messages, tools=[ADD])
    assert prompt.startswith("<|start|>system\nBe kind.\n\n")
    assert prompt.count("<|start|>system") == 1
    assert '"description": "Adds."' in prompt
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in prompt
    assert "<|start|>user\n<tool_response>\nr1\n</tool_response>" in prompt


def test_without_a_template_roles_are_spelled_out(make_codec: Any) -> None:
    assert text(make_codec(template=None)) == "user: hi\n\nassistant: "


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": [USER], "tool_choice": "nope", "tools": [ADD]}, "add"),
        ({"messages": [USER], "tool_choice": "required"}, "no tools"),
    ],
)
def test_impossible_calls_are_refused(codecs: Any, call: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        codecs().encode_chat(LlmChat(**call))
    assert caught.value.fix


def test_what_the_template_refuses_is_the_callers_error(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    codec = TransformersCodec(tokenizer, GenerationConfig(), window=10, width=320)
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        codec.encode_chat(LlmChat(messages=[USER]))


def test_defaults_follow_the_generation_settings(make_codec: Any) -> None:
    assert make_codec().defaults.temperature == 0.0
    assert make_codec(temperature=0.7).defaults.temperature == 0.0  # do_sample is off
    sampled = make_codec(do_sample=True, temperature=0.7, top_p=0.9, top_k=20).defaults
    assert (sampled.temperature, sampled.top_p, sampled.top_k) == (0.7, 0.9, 20)


def test_end_tokens_come_from_all_sources(make_codec: Any) -> None:
    codec = make_codec(eos_token_id=[3, 5])
    assert codec.end_tokens == {3, 5, *codec.encode("<|end|>")}


def test_a_model_without_an_end_is_refused(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(template=None)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="end token"):
        TransformersCodec(tokenizer, GenerationConfig(), window=10, width=320)


def test_forced_text_brings_no_special_tokens(codecs: Any) -> None:
    assert codecs().decode(codecs().encode("the é")) == "the é"
