"""The Responses API: requests, answers and events, judged by the openai package's own types."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from aios_kernel.errors import AiosError, Busy, InvalidRequest, Unsupported
from aios_kernel.openai_wire import RESPONSES_INERT, ResponsesExchange
from aios_kernel.openai_wire.responses_request import read_responses_request
from aios_kernel.syscalls import LlmDelta, LlmResult, Message, ToolCall, Usage

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Judge the code and not how busy the machine is."""


def exchange(**fields: Any) -> ResponsesExchange:
    return ResponsesExchange({"model": "m", "input": "hello", **fields})


def read(**fields: Any) -> Any:
    return read_responses_request({"input": "hello", **fields}).call


def events(data: bytes) -> list[dict[str, Any]]:
    """The JSON of the events, each checked to bear its own name."""
    told: list[dict[str, Any]] = []
    for block in data.decode().removesuffix("\n\n").split("\n\n"):
        name, body = block.split("\n", 1)
        told.append(json.loads(body.removeprefix("data: ")))
        assert name == f"event: {told[-1]['type']}"
    return told


@PROPERTY
@given(st.data())
def test_every_chat_survives_the_wire(wire: Any, data: st.DataObject) -> None:
    call = data.draw(wire.chats())
    sampling = msgspec.structs.replace(call.sampling, stop=[], n=1, prompt_logprobs=None)
    call = msgspec.structs.replace(call, sampling=sampling, regex=None, choice=[])
    messages = call.messages if call.messages[0].content else call.messages[1:]
    expected = msgspec.structs.replace(call, messages=messages)
    assert read_responses_request(wire.responses_body(call)).call == expected


@PROPERTY
@given(
    st.dictionaries(
        st.sampled_from(["input", "tools", "tool_choice", "text", "include", "metadata", "top_logprobs", "reasoning"]),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["type", "role", "content", "format"]), inner)
            ),
            max_leaves=8,
        ),
    )
)
def test_no_body_raises_anything_but_our_errors(body: dict[str, Any]) -> None:
    with contextlib.suppress(AiosError):
        ResponsesExchange(body)


def test_items_become_the_turns_that_the_model_wrote() -> None:
    call = read(
        instructions="be kind",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "reasoning", "id": "rs", "summary": []},
            {
                "type": "message", "id": "msg", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "let me see", "annotations": [], "logprobs": []}],
            },
            {"type": "function_call", "id": "fc", "call_id": "a", "name": "f", "arguments": "{}", "status": ""},
            {"type": "function_call", "call_id": "b", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "1"},
            {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "2"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        ],
    )  # fmt: skip
    assert call.messages == [
        Message("system", "be kind"),
        Message("user", "weather?"),
        Message("assistant", "let me see", [ToolCall("a", "f", "{}"), ToolCall("b", "g", "{}")]),
        Message("tool", "1", tool_call_id="a", name="f"),
        Message("tool", "2", tool_call_id="b", name="g"),
        Message("assistant", "", [ToolCall("c", "f", "{}")]),
    ]


def test_output_can_be_sent_back_as_input() -> None:
    result = LlmResult("m", "hm", [ToolCall("a", "f", "{}")], "tool_calls")
    output = exchange().reply(result)["output"]
    call = read(input=[{"role": "user", "content": "x"}, *output])
    assert call.messages[1] == Message("assistant", "hm", [ToolCall("a", "f", "{}")])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"tools": [WEATHER], "tool_choice": {"type": "mcp", "server_label": "x"}}, "mcp"),
        ({"include": ["file_search_call.results"]}, "file_search_call.results"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ({"input": [{"role": "tool", "content": "x"}]}, "role"),
        ({"text": {"format": {"type": "grammar"}}}, "grammar"),
        ({"stop": "x"}, "stop"),
    ],
)
def test_what_is_not_served_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(Unsupported, match=named):
        read(**fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"input": []}, "input"), ({"input": 3}, "input"), ({"metadata": 3}, "metadata"), ({"tools": 3}, "tools")],
)
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        read(**fields)


def test_inert_and_neutral_fields_change_nothing() -> None:
    neutral = {"background": False, "truncation": "disabled", "include": ["reasoning.encrypted_content"]}
    assert read(**neutral, **dict.fromkeys(RESPONSES_INERT, "x"), metadata={"a": "b"}) == read()


@PROPERTY
@given(st.data())
def test_the_whole_answer_is_a_response(wire: Any, data: st.DataObject) -> None:
    call, result = data.draw(wire.chats()), data.draw(wire.answers())
    body = wire.responses_body(call)
    reply = Response.model_validate(ResponsesExchange(body).reply(result))
    assert reply.output_text == result.text
    calls = [(item.call_id, item.name, item.arguments) for item in reply.output if item.type == "function_call"]
    assert calls == [(c.id, c.name, c.arguments) for c in result.tool_calls]
    assert reply.status == ("incomplete" if result.finish_reason == "length" else "completed")
    assert reply.usage is not None
    assert reply.usage.input_tokens_details.cached_tokens == result.usage.cached_tokens
    assert (reply.model, reply.temperature, len(reply.tools)) == (
        result.model, call.sampling.temperature, len(call.tools)
    )  # fmt: skip


@PROPERTY
@given(st.data())
def test_events_tell_the_answer(wire: Any, data: st.DataObject) -> None:
    result: LlmResult = data.draw(wire.answers())
    writer = exchange(stream=True, include=["message.output_text.logprobs"])
    pieces = [LlmDelta(text=character) for character in result.text]
    pieces += [LlmDelta(tool_calls=[call]) for call in result.tool_calls]
    told = events(writer.begin() + b"".join(map(writer.delta, pieces)) + writer.end(result))
    for event in told:
        EVENTS.validate_python(event)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert "".join(e["delta"] for e in told if e["type"] == "response.output_text.delta") == result.text
    last = Response.model_validate(told[-1]["response"])
    assert last.output_text == result.text
    assert [i.call_id for i in last.output if i.type == "function_call"] == [c.id for c in result.tool_calls]
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert done == told[-1]["response"]["output"]


def test_the_order_of_events() -> None:
    writer = exchange(stream=True)
    result = LlmResult("m", "hi", [ToolCall("a", "f", '{"x":1}')], "tool_calls", Usage(1, 0, 1))
    told = events(
        writer.begin()
        + writer.delta(LlmDelta("h"))
        + writer.delta(LlmDelta("i", [ToolCall("a", "f", '{"x":1}')]))
        + writer.end(result)
    )
    assert [event["type"].removeprefix("response.") for event in told] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert [event.get("output_index") for event in told[2:-1]] == [0] * 7 + [1] * 4


def test_an_empty_answer_is_an_empty_message() -> None:
    writer = exchange(stream=True)
    told = events(writer.begin() + writer.end(LlmResult("m")))
    assert told[-1]["response"]["output"][0]["content"][0]["text"] == ""
    assert exchange().reply(LlmResult("m"))["output"][0]["content"][0]["text"] == ""


def test_the_token_limit_makes_it_incomplete() -> None:
    writer = exchange(stream=True, max_output_tokens=1)
    last = events(writer.begin() + writer.delta(LlmDelta("a")) + writer.end(LlmResult("m", "a", [], "length")))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["max_output_tokens"] == 1


def test_an_error_in_the_middle_fails_the_response() -> None:
    writer = exchange(stream=True)
    told = events(writer.begin() + writer.fail(Busy("full", fix="wait")))
    EVENTS.validate_python(told[-2])
    assert told[-2]["type"] == "response.failed"
    assert told[-2]["response"]["error"]["code"] == "rate_limit_exceeded"
    assert "fix: wait" in told[-1]["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
        ({"structured_outputs": {"json": {"type": "null"}}}, {"schema": {"type": "null"}}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"text": {"format": {"type": "json_object"}}}, {"schema": {}}),
    ],
)
def test_structures_are_spelled_as_in_chat_completions(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    call = read_responses_request({"model": "m", "input": "x", "n": 1, **fields}).call
    found = {"schema": call.schema, "regex": call.regex, "choice": call.choice}
    assert found == {"schema": None, "regex": None, "choice": [], **expected}


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"n": 2}, Unsupported, "Chat Completions"),
        ({"text": {"format": {"type": "grammar"}}}, Unsupported, "grammar"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, Unsupported, r"structured_outputs\.grammar"),
        ({"tools": [{"type": "custom", "name": "x"}]}, Unsupported, "custom"),
        (
            {"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
            InvalidRequest,
            "several structures",
        ),
    ],
)
def test_what_a_response_cannot_be_held_to_is_refused_by_name(
    fields: dict[str, Any], error: type[AiosError], says: str
) -> None:
    with pytest.raises(error) as refusal:
        read_responses_request({"model": "m", "input": "x", **fields})
    assert re.search(says, f"{refusal.value.message} {refusal.value.fix}")
