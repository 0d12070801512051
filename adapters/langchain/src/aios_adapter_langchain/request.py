"""From a call of a LangChain model to a Chat Completions request.

The leaf methods get what was bound (`bind_tools`, `with_structured_output`, `bind`) as keyword arguments; the rest are
attributes of the model, which each integration calls a little differently. The body is read by
`aios_kernel.openai_wire`, so that what the kernel does not serve is refused by name, in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from aios_kernel.errors import Unsupported
from aios_kernel.openai_wire import ChatExchange
from aios_kernel.syscalls import LlmChat

_MODEL_NAMES = ("model_name", "model", "model_id", "deployment_name", "azure_deployment")

_OTHER_NAMES = {
    "model_name": "model",
    "stop_sequences": "stop",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "format": "response_format",
}
"""How integrations call the same arguments (Anthropic, OpenAI's newer models, Google, Hugging Face, Ollama)."""

_SAMPLING = (
    "temperature", "top_p", "top_k", "seed", "stop", "stop_sequences", "max_tokens", "max_completion_tokens",
    "max_output_tokens", "max_new_tokens", "num_predict", "logprobs", "top_logprobs", "n",
    "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "min_p",
)  # fmt: skip
"""Attributes of a model that say how to choose tokens."""

_READ = frozenset(
    {
        "model", "temperature", "top_p", "top_k", "seed", "stop", "max_tokens", "logprobs", "top_logprobs", "n",
        "tools", "tool_choice", "parallel_tool_calls", "response_format", "aios_forced", "min_p",
        "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias",
        # not served: refused unless they ask for nothing
        "modalities", "audio", "web_search_options",
        "functions", "function_call", "text", "previous_response_id",
    }
)  # fmt: skip
"""Arguments that say what the answer shall be. The others (headers, billing, tracing, a provider's own) concern a
server that is not asked here."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What a leaf method was asked for.

    Attributes:
        exchange: the request, read; its `call` is for the kernel.
        answers: how many answers are wanted (`n`).
        timeout_s: seconds that the model's own settings allow; None: as long as it takes.
        structured: a `response_format` was given.
        parse: the pydantic class that the answer's text must be parsed to.
        show_usage: whether a stream tells its usage.
    """

    exchange: ChatExchange
    answers: int
    timeout_s: float | None
    structured: bool
    parse: type | None
    show_usage: bool

    @property
    def call(self) -> LlmChat:
        """The chat to ask the kernel for."""
        return self.exchange.call


def model_request(
    model: Any, wire: Sequence[dict[str, Any]], stop: list[str] | None, options: Mapping[str, Any], *, n: bool = True
) -> ModelRequest:
    """Read a call of `model` with these messages.

    Args:
        model: the LangChain model; its attributes are the defaults.
        wire: messages in OpenAI's spelling.
        stop: stop strings of this call; they replace the model's own.
        options: what was bound or given with the call.
        n: whether several answers can be given (a stream has one only).

    Raises:
        InvalidRequest: or Unsupported, which names the argument that cannot be served.
    """
    arguments = _arguments(model, options)
    if stop is not None:
        arguments["stop"] = stop
    body = {name: value for name, value in arguments.items() if name in _READ}
    answers = body.pop("n", None) or 1
    if answers > 1 and not n:
        raise Unsupported(f"n = {answers} is not supported here: a stream has one answer", fix="leave n out")
    asked = body.get("response_format")
    _spell(body)
    return ModelRequest(
        exchange=ChatExchange({**body, "messages": list(wire)}),
        answers=answers,
        timeout_s=_timeout(model, options),
        structured=asked is not None,
        parse=asked if isinstance(asked, type) else None,
        show_usage=_show_usage(model, options),
    )


def _arguments(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments under OpenAI's names: the attributes, what they nest, the call's own; the later wins."""
    arguments: dict[str, Any] = {"model": _model_name(model)}
    own = {name: _attribute(model, name) for name in _SAMPLING}
    for source in (own, _attribute(model, "model_kwargs"), _attribute(model, "extra_body"), options):
        if not isinstance(source, Mapping):
            continue
        nested = [source.get(name) for name in ("options", "extra_body")]  # Ollama's sampling; merged by OpenAI's SDK
        for values in (source, *nested):
            if isinstance(values, Mapping):
                arguments |= {
                    _OTHER_NAMES.get(name, name): value for name, value in values.items() if value is not None
                }
    return arguments


def _model_name(model: Any) -> str | None:
    names = (_attribute(model, name) for name in _MODEL_NAMES)
    return next((name for name in names if isinstance(name, str) and name), None)


def _attribute(model: Any, name: str) -> Any:
    value = getattr(model, name, None)
    return None if callable(value) else value


def _spell(body: dict[str, Any]) -> None:
    """Bring tools, tool choice and format into OpenAI's spelling, whichever provider's they are in."""
    tools = body.get("tools")
    if tools:
        body["tools"] = [_wire_tool(tool) for tool in tools]
        body["tool_choice"] = _wire_choice(body.get("tool_choice"))
    else:
        body.pop("tools", None)
        if body.get("tool_choice") in ("auto", "none"):
            del body["tool_choice"]
    body["response_format"] = _wire_format(body.get("response_format"))
    if type(body.get("logprobs")) is int:  # how many alternatives a completion model shows; chats show none here
        del body["logprobs"]
    if body.get("top_logprobs") and body.get("logprobs") is None:
        body["logprobs"] = True
    if not body.get("stop"):
        body.pop("stop", None)


def _wire_tool(tool: Any) -> dict[str, Any]:
    wire = convert_to_openai_tool(tool)
    return {"type": "function", "function": wire["function"]} if wire.get("type") == "function" else wire


def _wire_choice(choice: Any) -> Any:
    """`any` and True ask for some tool; a bare name, or Anthropic's dictionary, for that tool."""
    if choice is None or choice is False:
        return None
    if choice is True or choice == "any":
        return "required"
    if isinstance(choice, str):
        return choice if choice in {"auto", "none", "required"} else _function(choice)
    if choice.get("type") in {"auto", "none", "any"}:
        return _wire_choice(choice["type"])
    return _function(choice["name"]) if choice.get("type") == "tool" else choice


def _function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _wire_format(asked: Any) -> Any:
    """A class, Ollama's `"json"` and a bare schema in OpenAI's spelling."""
    if asked == "json":
        return {"type": "json_object"}
    if isinstance(asked, type) and is_basemodel_subclass(asked):
        describe = getattr(asked, "model_json_schema", None) or asked.schema  # pydantic 1 has the second only
        return {"type": "json_schema", "json_schema": {"name": asked.__name__, "schema": describe()}}
    if isinstance(asked, Mapping) and asked.get("type") not in ("text", "json_object", "json_schema"):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(asked)}}
    return asked


def _timeout(model: Any, options: Mapping[str, Any]) -> float | None:
    for value in (options.get("timeout"), _attribute(model, "request_timeout"), _attribute(model, "timeout")):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _show_usage(model: Any, options: Mapping[str, Any]) -> bool:
    """Unless it was switched off: by `stream_usage`, or in OpenAI's way."""
    asked = (options.get("stream_options") or {}).get("include_usage")
    return False not in (options.get("stream_usage"), asked, _attribute(model, "stream_usage"))
