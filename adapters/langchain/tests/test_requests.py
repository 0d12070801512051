"""What a leaf method is given, as a syscall."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatResult
from langchain_core.tools import tool
from langchain_openai import AzureChatOpenAI, ChatOpenAI, OpenAI
from pydantic import BaseModel

from aios_adapter_langchain.messages import wire_messages
from aios_adapter_langchain.request import ModelRequest, model_request
from aios_kernel.errors import InvalidRequest, Unsupported
from aios_kernel.openai_wire import chat_messages
from aios_kernel.syscalls import LlmChat, Message, ToolCall


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class City(BaseModel):
    name: str


def read(*messages: Any) -> list[Message]:
    return chat_messages(wire_messages(messages))


def asked(model: Any, stop: list[str] | None = None, /, **options: Any) -> ModelRequest:
    return model_request(model, [{"role": "user", "content": "hi"}], stop, options)


def bound(runnable: Any) -> LlmChat:
    return asked(runnable.bound, **runnable.kwargs).call


def test_roles() -> None:
    assert [message.role for message in read(
        SystemMessage("s"), HumanMessage("h"), AIMessage("a"), AIMessageChunk("c"), ChatMessage("m", role="developer"),
        ToolMessage("t", tool_call_id="1"), FunctionMessage("f", name="old"),
    )] == ["system", "user", "assistant", "assistant", "system", "tool", "tool"]  # fmt: skip


def test_tool_calls_and_their_results() -> None:
    assistant, result = read(
        AIMessage(
            "thinking",
            tool_calls=[{"name": "add", "args": {"a": 1}, "id": "x"}, {"name": "add", "args": {}, "id": None}],
            invalid_tool_calls=[{"name": "add", "args": "{broken", "id": "y", "error": "no JSON"}],
        ),
        ToolMessage("3", tool_call_id="x", status="error"),
    )
    assert assistant == Message(
        "assistant",
        "thinking",
        [ToolCall("x", "add", '{"a": 1}'), ToolCall("call_1", "add", "{}"), ToolCall("y", "add", "{broken")],
    )
    assert result == Message("tool", "3", tool_call_id="x", name="add")


def test_text_blocks_are_joined() -> None:
    (message,) = read(HumanMessage(["one", {"type": "text", "text": "two"}]))
    assert message.content == "one\ntwo"


def test_remarks_of_earlier_answers_are_left_out() -> None:
    (message,) = read(
        AIMessage(
            [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "yes", "index": 0, "annotations": []},
                {"type": "tool_use", "id": "x", "name": "add", "input": {"a": 1}},
            ],
            tool_calls=[{"name": "add", "args": {"a": 1}, "id": "x"}],
        )
    )
    assert message == Message("assistant", "yes", [ToolCall("x", "add", '{"a": 1}')])


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
        {"type": "image", "base64": "", "mime_type": "image/png"},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "file", "file_id": "f"},
    ],
    ids=lambda block: block["type"],
)
def test_media_are_refused_by_name(block: Any) -> None:
    with pytest.raises(Unsupported, match=block["type"]):
        read(HumanMessage([{"type": "text", "text": "look"}, block]))


def test_what_is_no_message_of_a_chat() -> None:
    with pytest.raises(Unsupported, match="RemoveMessage"):
        read(RemoveMessage("1"))
    with pytest.raises(InvalidRequest, match="empty"):
        read()


def test_attributes_are_the_defaults_and_the_call_wins() -> None:
    model = ChatOpenAI(
        model="gpt-4o", temperature=0.5, top_p=0.9, seed=3, max_tokens=10, stop_sequences=["a"], timeout=7,
        frequency_penalty=0, presence_penalty=0.0, reasoning_effort="low", model_kwargs={"user": "u"},
        extra_body={"top_k": 5},
    )  # fmt: skip
    call = asked(model).call
    assert call.model == "gpt-4o"
    sampling = call.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 5, 3)
    assert (sampling.max_tokens, sampling.stop) == (10, ["a"])
    assert asked(model).timeout_s == 7

    own = asked(
        model, ["b"], temperature=0, max_completion_tokens=4, model="other", timeout=1.5, extra_body={"top_k": 2}
    )
    sampling = own.call.sampling
    assert (own.call.model, sampling.temperature, sampling.max_tokens, sampling.top_k) == ("other", 0, 4, 2)
    assert sampling.stop == ["b"]
    assert own.timeout_s == 1.5


def test_other_integrations_names() -> None:
    class Foreign(BaseChatModel):
        model_id: str = "llama"
        num_predict: int = 4
        stop_sequences: list[str] = ["x"]

        @property
        def _llm_type(self) -> str:
            return "foreign"

        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            raise AssertionError

    request = asked(Foreign(), format="json", options={"temperature": 0.25})
    assert (request.call.model, request.call.schema) == ("llama", {})
    assert (request.call.sampling.max_tokens, request.call.sampling.stop) == (4, ["x"])
    assert request.call.sampling.temperature == 0.25
    assert asked(Foreign(), format={"type": "object", "properties": {}}).call.schema == {
        "type": "object",
        "properties": {},
    }
    assert asked(
        AzureChatOpenAI(azure_deployment="mine", azure_endpoint="http://127.0.0.1", api_version="1")
    ).call.model
    assert asked(OpenAI(model="instruct", logprobs=2)).call.sampling.max_tokens == 256


def test_tools_of_any_providers_spelling() -> None:
    model = ChatOpenAI(model="gpt-4o")
    anthropic = {"name": "find", "description": "Find.", "input_schema": {"type": "object", "properties": {}}}
    call = asked(model, tools=[add, anthropic, {"type": "function", "function": {"name": "bare"}}]).call
    assert [spec.name for spec in call.tools] == ["add", "find", "bare"]
    assert set(call.tools[0].parameters["properties"]) == {"a", "b"}
    assert call.tools[1].description == "Find."
    with pytest.raises(Unsupported, match="web_search"):
        asked(model, tools=[{"type": "web_search"}])


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, "auto"), ("auto", "auto"), ("none", "none"), ("any", "required"), ("required", "required"),
        (True, "required"), (False, "auto"), ("add", "add"), ({"type": "any"}, "required"),
        ({"type": "tool", "name": "add"}, "add"), ({"type": "function", "function": {"name": "add"}}, "add"),
    ],
)  # fmt: skip
def test_tool_choice(choice: Any, expected: str) -> None:
    options = {} if choice is None else {"tool_choice": choice}
    assert asked(ChatOpenAI(model="gpt-4o"), tools=[add], **options).call.tool_choice == expected


def test_what_bind_tools_binds() -> None:
    model = ChatOpenAI(model="gpt-4o")
    call = bound(model.bind_tools([add], tool_choice="add", parallel_tool_calls=False, strict=True))
    assert (call.tool_choice, call.parallel_tool_calls) == ("add", False)
    assert bound(model.bind_tools([add])).parallel_tool_calls


def test_structured_output_methods() -> None:
    model = ChatOpenAI(model="gpt-4o")

    def first(**options: Any) -> ModelRequest:
        runnable: Any = model.with_structured_output(City, **options).first  # type: ignore[attr-defined]
        return asked(runnable.bound, **runnable.kwargs)

    by_schema = first(method="json_schema")
    assert by_schema.call.schema is not None
    assert by_schema.call.schema["properties"]["name"]["type"] == "string"
    assert (by_schema.parse, by_schema.structured) == (City, True)
    by_call = first(method="function_calling")
    assert (by_call.call.tool_choice, by_call.call.schema, by_call.structured) == ("City", None, False)
    by_mode = first(method="json_mode")
    assert (by_mode.call.schema, by_mode.parse, by_mode.structured) == ({}, None, True)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("frequency_penalty", 3), ("presence_penalty", "x"), ("logit_bias", {"a": 2}), ("modalities", ["audio"]),
        ("functions", [{"name": "old"}]), ("previous_response_id", "r"), ("temperature", 9), ("top_p", "high"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=option):
        asked(ChatOpenAI(model="gpt-4o"), **{option: value})


def test_several_answers_and_usage() -> None:
    model = ChatOpenAI(model="gpt-4o", n=3)
    assert asked(model).answers == 3
    with pytest.raises(Unsupported, match="n = 3"):
        model_request(model, [{"role": "user", "content": "hi"}], None, {}, n=False)
    assert asked(model).show_usage
    assert not asked(model, stream_usage=False).show_usage
    assert not asked(model, stream_options={"include_usage": False}).show_usage


def test_the_class_reads_nothing_that_is_a_method() -> None:
    class Odd(BaseChatModel):
        @property
        def _llm_type(self) -> str:
            return "odd"

        def stop(self) -> Iterator[str]:
            raise AssertionError

        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            raise AssertionError

    assert asked(Odd()).call.sampling.stop == []
