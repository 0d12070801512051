"""Chats and answers for property tests, and the wire's spelling of a chat."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling, TokenLogprob, ToolCall, ToolSpec, Usage

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.text("abcdefghijklmnop_", min_size=1, max_size=8).filter(lambda n: n not in {"auto", "none", "required"})
SCHEMAS = st.fixed_dictionaries({"type": st.just("object"), "title": TEXTS})
CALLS = st.builds(ToolCall, id=NAMES, name=NAMES, arguments=st.just('{"a": 1}'))
LOGPROBS = st.builds(
    TokenLogprob,
    token=TEXTS,
    logprob=st.floats(-50, 0),
    top=st.lists(st.tuples(TEXTS, st.floats(-50, 0)), max_size=2),
)
USAGES = st.builds(
    Usage,
    prompt_tokens=st.integers(0, 10**6),
    cached_tokens=st.integers(0, 10**6),
    completion_tokens=st.integers(0, 10**6),
)


@st.composite
def messages(draw: st.DrawFn) -> list[Message]:
    """A chat of well-formed turns; tool answers follow their calls and carry the tool's name."""
    turns = [Message("system", draw(TEXTS)), Message("user", draw(TEXTS))]
    for _ in range(draw(st.integers(0, 2))):
        calls = draw(st.lists(CALLS, max_size=2, unique_by=lambda call: call.id))
        turns.append(Message("assistant", draw(TEXTS), calls))
        turns += [Message("tool", draw(TEXTS), tool_call_id=call.id, name=call.name) for call in calls]
        turns.append(Message("user", draw(TEXTS)))
    return turns


@st.composite
def chats(draw: st.DrawFn) -> LlmChat:
    """Any chat that Chat Completions can express."""
    names = draw(st.lists(NAMES, max_size=3, unique=True))
    tools = [ToolSpec(name, draw(TEXTS), draw(SCHEMAS)) for name in names]
    logprobs = draw(st.booleans())
    sampling = Sampling(
        temperature=draw(st.none() | st.floats(0, 2)),
        top_p=draw(st.none() | st.floats(0, 1)),
        top_k=draw(st.none() | st.integers(1, 100)),
        seed=draw(st.none() | st.integers(-(2**31), 2**31)),
        stop=draw(st.lists(TEXTS.filter(bool), max_size=2)),
        max_tokens=draw(st.none() | st.integers(1, 1000)),
        logprobs=logprobs,
        top_logprobs=draw(st.integers(0, 20)) if logprobs else 0,
        forced=draw(st.none() | TEXTS),
        min_p=draw(st.none() | st.floats(0, 1)),
        presence_penalty=draw(st.none() | st.floats(-2, 2)),
        frequency_penalty=draw(st.none() | st.floats(-2, 2)),
        repetition_penalty=draw(st.none() | st.floats(0.5, 2)),
        logit_bias=draw(st.dictionaries(st.integers(0, 10**6), st.floats(-100, 100), max_size=2)),
        n=draw(st.integers(1, 3)),
        prompt_logprobs=draw(st.none() | st.integers(0, 5)),
    )
    structure = draw(st.sampled_from([{}, {"schema": {}}, {"regex": "a+"}, {"choice": ["a", "b"]}]))
    if not structure:
        structure = {"schema": draw(st.none() | SCHEMAS)}
    return LlmChat(
        messages=draw(messages()),
        tools=tools,
        tool_choice=draw(st.sampled_from(["auto", "none", *(["required", *names] if names else [])])),
        parallel_tool_calls=draw(st.booleans()),
        **structure,
        sampling=sampling,
        model=draw(st.none() | NAMES),
        stream=draw(st.booleans()),
    )


@st.composite
def answers(draw: st.DrawFn) -> LlmResult:
    """Any answer of a model."""
    return LlmResult(
        model=draw(NAMES),
        text=draw(TEXTS),
        tool_calls=draw(st.lists(CALLS, max_size=3)),
        finish_reason=draw(st.sampled_from(["stop", "length", "tool_calls"])),
        usage=draw(USAGES),
        logprobs=draw(st.lists(LOGPROBS, max_size=3)),
        argmax=draw(st.lists(st.integers(0, 5), max_size=3)),
    )


class Wire:
    """Strategies, and the inverse of the readers under test."""

    chats = staticmethod(chats)
    answers = staticmethod(answers)

    @staticmethod
    def chat_body(call: LlmChat) -> dict[str, Any]:
        """The Chat Completions request that means `call`."""
        sampling = call.sampling
        return {
            "model": call.model,
            "messages": [_message(message) for message in call.messages],
            "tools": [{"type": "function", "function": _tool(tool)} for tool in call.tools],
            "tool_choice": _choice(call.tool_choice),
            "parallel_tool_calls": call.parallel_tool_calls,
            "response_format": _format(call.schema),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": sampling.seed,
            "stop": sampling.stop or None,
            "max_completion_tokens": sampling.max_tokens,
            "logprobs": sampling.logprobs,
            "top_logprobs": sampling.top_logprobs,
            "aios_forced": sampling.forced,
            "stream": call.stream,
            **_extensions(sampling),
            "n": sampling.n,
            "prompt_logprobs": sampling.prompt_logprobs,
            "structured_outputs": {"regex": call.regex, "choice": call.choice},
        }

    @staticmethod
    def responses_body(call: LlmChat) -> dict[str, Any]:
        """The Responses request that means `call`, but for what only Chat Completions knows."""
        sampling = call.sampling
        return {
            "model": call.model,
            "instructions": call.messages[0].content,
            "input": [item for message in call.messages[1:] for item in _items(message)],
            "tools": [{"type": "function", **_tool(tool)} for tool in call.tools],
            "tool_choice": _choice(call.tool_choice, flat=True),
            "parallel_tool_calls": call.parallel_tool_calls,
            "text": {"format": _format(call.schema, flat=True)},
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": sampling.seed,
            "max_output_tokens": sampling.max_tokens,
            "include": ["message.output_text.logprobs"] if sampling.logprobs else [],
            "top_logprobs": sampling.top_logprobs,
            "aios_forced": sampling.forced,
            "stream": call.stream,
            **_extensions(sampling),
        }


@pytest.fixture(scope="session")
def wire() -> type[Wire]:
    """Strategies and the spelling of a chat."""
    return Wire


def _extensions(sampling: Sampling) -> dict[str, Any]:
    names = ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    biases = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return {"logit_bias": biases, **{name: getattr(sampling, name) for name in names}}


def _message(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        body["tool_call_id"] = message.tool_call_id
    return body


def _items(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "function_call_output", "call_id": message.tool_call_id, "output": message.content}]
    calls = [
        {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}
        for call in message.tool_calls
    ]
    return [{"type": "message", "role": message.role, "content": message.content}, *calls]


def _tool(tool: ToolSpec) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters, "strict": True}


def _choice(choice: str, *, flat: bool = False) -> Any:
    if choice in {"auto", "none", "required"}:
        return choice
    return {"type": "function", "name": choice} if flat else {"type": "function", "function": {"name": choice}}


def _format(schema: dict[str, Any] | None, *, flat: bool = False) -> dict[str, Any]:
    if schema is None:
        return {"type": "text"}
    if not schema:
        return {"type": "json_object"}
    inner = {"name": "answer", "schema": schema, "strict": True}
    return {"type": "json_schema", **inner} if flat else {"type": "json_schema", "json_schema": inner}
