"""From a call of AutoGen's `ChatCompletionClient` to the body of a Chat Completions request.

The body is read by `aios_kernel.openai_wire`, so that what the kernel does not serve is refused by name, in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autogen_core.models import (
    AssistantMessage,
    FunctionExecutionResultMessage,
    LLMMessage,
    SystemMessage,
    UserMessage,
)
from autogen_core.tools import Tool, ToolSchema
from pydantic import BaseModel

from aios_kernel.errors import Unsupported

_READ = frozenset(
    {
        "model", "temperature", "top_p", "top_k", "seed", "stop", "max_tokens", "max_completion_tokens",
        "logprobs", "top_logprobs", "parallel_tool_calls", "response_format", "n", "min_p", "frequency_penalty",
        "presence_penalty", "repetition_penalty", "logit_bias",
        # not served: refused unless they ask for nothing
        "modalities", "audio", "web_search_options",
    }
)  # fmt: skip
"""Create arguments that say what the answer shall be. The others (headers, billing, a provider's own) concern a server
that is not asked here."""

_OTHER_NAMES = {"stop_sequences": "stop", "num_predict": "max_tokens"}
"""How the Anthropic and Ollama clients call the same arguments."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request body and the seconds that it may take (None: as long as it takes)."""

    body: dict[str, Any]
    timeout_s: float | None


def model_request(
    client: Any,
    messages: Sequence[LLMMessage],
    *,
    tools: Sequence[Tool | ToolSchema] = (),
    tool_choice: Any = "auto",
    json_output: bool | type[BaseModel] | None = None,
    extra_create_args: Mapping[str, Any] | None = None,
) -> ModelRequest:
    """The request that `client.create(...)` stands for; the client's own create arguments are its defaults."""
    arguments = _create_arguments(client, extra_create_args or {})
    body = {name: value for name, value in arguments.items() if name in _READ}
    if body.get("n", 1) != 1:
        raise Unsupported(f"n = {body['n']} is not supported here: a client gives one answer", fix="leave n out")
    body["messages"] = wire_messages(messages, prefixes=getattr(client, "_add_name_prefixes", False))
    if tools:
        body["tools"] = wire_tools(tools)
        body["tool_choice"] = _wire_choice(tool_choice)
    body["response_format"] = _wire_format(json_output, body.get("response_format"))
    timeout = arguments.get("timeout")
    return ModelRequest(body, float(timeout) if isinstance(timeout, int | float) else None)


def wire_messages(messages: Sequence[LLMMessage], *, prefixes: bool = False) -> list[dict[str, Any]]:
    """Chat Completions messages; with `prefixes` users' texts name their source, as the client was told to do."""
    wire: list[dict[str, Any]] = []
    for message in messages:
        if isinstance(message, SystemMessage):
            wire.append({"role": "system", "content": message.content})
        elif isinstance(message, UserMessage):
            wire.append(_user(message, f"{message.source} said:\n" if prefixes else ""))
        elif isinstance(message, AssistantMessage):
            wire.append(_assistant(message))
        else:
            wire.extend(_results(message))
    return wire


def wire_tools(tools: Sequence[Tool | ToolSchema]) -> list[dict[str, Any]]:
    """Chat Completions tools."""
    return [{"type": "function", "function": dict(_schema(tool))} for tool in tools]


def _create_arguments(client: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    own = getattr(client, "_create_args", None)
    arguments = {**(own if isinstance(own, Mapping) else {}), **extra}
    for nested in ("options", "extra_body"):  # Ollama's sampling; what OpenAI's SDK merges into the body
        if isinstance(more := arguments.pop(nested, None), Mapping):
            arguments |= more
    return {_OTHER_NAMES.get(name, name): value for name, value in arguments.items()}


def _user(message: UserMessage, prefix: str) -> dict[str, Any]:
    if isinstance(message.content, str):
        return {"role": "user", "content": prefix + message.content}
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image_url"} for part in message.content
    ]
    if parts and "text" in parts[0]:
        parts[0]["text"] = prefix + parts[0]["text"]
    return {"role": "user", "content": parts}


def _assistant(message: AssistantMessage) -> dict[str, Any]:
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.content
    ]
    return {"role": "assistant", "content": message.thought, "tool_calls": calls}


def _results(message: FunctionExecutionResultMessage) -> list[dict[str, Any]]:
    return [
        {"role": "tool", "tool_call_id": result.call_id, "name": result.name, "content": result.content}
        for result in message.content
    ]


def _schema(tool: Tool | ToolSchema) -> ToolSchema:
    return tool if isinstance(tool, dict) else tool.schema


def _wire_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    return {"type": "function", "function": {"name": _schema(choice)["name"]}}


def _wire_format(json_output: bool | type[BaseModel] | None, asked: Any) -> Any:
    """`json_output` wins over a `response_format` among the create arguments, which may be a pydantic class too."""
    if json_output is True:
        return {"type": "json_object"}
    if json_output is False:
        return {"type": "text"}
    wanted = asked if json_output is None else json_output
    if not isinstance(wanted, type):
        return wanted
    if not issubclass(wanted, BaseModel):
        raise ValueError(f"json_output must be a boolean or a Pydantic model class, got {wanted!r}")
    return {"type": "json_schema", "json_schema": {"name": wanted.__name__, "schema": wanted.model_json_schema()}}
