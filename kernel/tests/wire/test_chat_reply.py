"""Writing Chat Completions answers, judged by the openai package's own types and stream accumulator."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from aios_kernel.errors import ContextTooLong
from aios_kernel.openai_wire import ChatExchange
from aios_kernel.syscalls import LlmDelta, LlmResult, TokenLogprob, ToolCall, Usage

HELLO = [{"role": "user", "content": "hello"}]
PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Judge the code and not how busy the machine is."""


def exchange(**fields: Any) -> ChatExchange:
    return ChatExchange({"model": "m", "messages": HELLO, **fields})


def chunks(data: bytes) -> list[dict[str, Any]]:
    """The JSON of the events before the end mark."""
    events = data.decode().removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event[6:]) for event in events if event != "data: [DONE]"]


def pieces(result: LlmResult) -> list[LlmDelta]:
    """A way in which the answer may have been streamed."""
    texts = [LlmDelta(text=character) for character in result.text]
    if texts:
        texts[0] = LlmDelta(text=texts[0].text, logprobs=result.logprobs)
    return texts + [LlmDelta(tool_calls=[call]) for call in result.tool_calls]


@PROPERTY
@given(st.data())
def test_the_whole_answer_is_a_chat_completion(wire: Any, data: st.DataObject) -> None:
    result: LlmResult = data.draw(wire.answers())
    reply = ChatCompletion.model_validate(exchange(logprobs=True).reply(result))
    choice = reply.choices[0]
    assert (reply.model, choice.message.content or "", choice.finish_reason) == (
        result.model, result.text, result.finish_reason
    )  # fmt: skip
    calls = [(c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls or []]  # type: ignore[union-attr]
    assert calls == [(c.id, c.name, c.arguments) for c in result.tool_calls]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (
        result.usage.prompt_tokens, result.usage.completion_tokens
    )  # fmt: skip
    assert reply.usage.prompt_tokens_details.cached_tokens == result.usage.cached_tokens
    assert choice.logprobs is not None
    told = [(t.token, t.logprob, [(o.token, o.logprob) for o in t.top_logprobs]) for t in choice.logprobs.content or []]
    assert told == [(t.token, t.logprob, list(t.top)) for t in result.logprobs]


@PROPERTY
@given(st.data())
def test_chunks_add_up_to_the_answer(wire: Any, data: st.DataObject) -> None:
    result: LlmResult = data.draw(wire.answers())
    writer = exchange(stream=True, stream_options={"include_usage": True}, logprobs=True)
    stream = writer.begin() + b"".join(map(writer.delta, pieces(result))) + writer.end(result)
    assert stream.endswith(b"data: [DONE]\n\n")
    state = ChatCompletionStreamState()
    for chunk in chunks(stream):
        ChatCompletionChunk.model_validate(chunk)
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    choice = state.current_completion_snapshot.choices[0]
    assert (choice.message.content, choice.finish_reason) == (result.text, result.finish_reason)
    calls = [(c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls or []]
    assert calls == [(c.id, c.name, c.arguments) for c in result.tool_calls]
    usage = state.current_completion_snapshot.usage
    assert usage is not None
    assert usage.total_tokens == result.usage.prompt_tokens + result.usage.completion_tokens
    if result.text:
        assert choice.logprobs is not None
        assert [entry.token for entry in choice.logprobs.content or []] == [entry.token for entry in result.logprobs]


def test_the_order_of_chunks() -> None:
    writer = exchange(stream=True)
    calls = [ToolCall("a", "f", "{}"), ToolCall("b", "g", "{}")]
    stream = writer.begin() + writer.delta(LlmDelta("hi")) + writer.delta(LlmDelta(tool_calls=calls))
    stream += writer.delta(LlmDelta()) + writer.end(LlmResult("served", "hi", calls, "tool_calls"))
    told = chunks(stream)
    deltas = [chunk["choices"][0]["delta"] for chunk in told]
    assert deltas[0]["role"] == "assistant"
    assert deltas[1] == {"content": "hi"}
    assert [call["index"] for call in deltas[2]["tool_calls"]] == [0, 1]
    assert deltas[3] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in told] == [None, None, None, "tool_calls"]
    assert [chunk["model"] for chunk in told] == ["m", "m", "m", "served"]
    assert all("usage" not in chunk for chunk in told)


def test_the_usage_chunk_comes_last_and_has_no_choice() -> None:
    writer = exchange(stream=True, stream_options={"include_usage": True})
    told = chunks(writer.begin() + writer.end(LlmResult("m", usage=Usage(5, 3, 2))))
    assert [chunk["usage"] is None for chunk in told] == [True, True, False]
    assert told[-1]["choices"] == []
    assert told[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


def test_content_is_null_beside_tool_calls_only() -> None:
    with_call = exchange().reply(LlmResult("m", tool_calls=[ToolCall("a", "f", "{}")]))
    assert with_call["choices"][0]["message"]["content"] is None
    assert exchange().reply(LlmResult("m"))["choices"][0]["message"]["content"] == ""


def test_logprobs_are_told_only_when_asked_and_are_json() -> None:
    result = LlmResult("m", "x", logprobs=[TokenLogprob("x", float("-inf"))])
    assert exchange().reply(result)["choices"][0]["logprobs"] is None
    told = exchange(logprobs=True).reply(result)["choices"][0]["logprobs"]["content"]
    assert told == [{"token": "x", "logprob": -9999.0, "bytes": [120], "top_logprobs": []}]


def test_agreement_of_forced_decoding_is_told() -> None:
    assert exchange(aios_forced="x").reply(LlmResult("m", "x", argmax=[4]))["aios_argmax"] == [4]


def test_an_error_in_the_middle_is_an_error_event() -> None:
    (told,) = chunks(exchange().fail(ContextTooLong("too long", fix="shorten it")))
    assert told["error"]["code"] == "context_length_exceeded"
    assert "fix: shorten it" in told["error"]["message"]


@pytest.mark.parametrize("field", ["id", "created"])
def test_all_chunks_belong_together(field: str) -> None:
    writer = exchange(stream=True)
    told = chunks(writer.begin() + writer.delta(LlmDelta("a")) + writer.end(LlmResult("m", "a")))
    assert len({chunk[field] for chunk in told}) == 1
    assert writer.begin() != exchange(stream=True).begin()
