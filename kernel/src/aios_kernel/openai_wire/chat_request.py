"""Chat Completions: reading a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aios_kernel.errors import InvalidRequest
from aios_kernel.openai_wire._format import read_structure
from aios_kernel.openai_wire._messages import read_messages
from aios_kernel.openai_wire._reader import Reader
from aios_kernel.openai_wire._sampling import MOST_TOKENS, read_chat_sampling
from aios_kernel.openai_wire._tools import read_tool_choice, read_tools
from aios_kernel.syscalls import LlmChat

CHAT_INERT = frozenset(
    {
        # whose request it is: the connection says that here
        "user", "safety_identifier", "metadata",
        # where OpenAI keeps and bills it
        "store", "service_tier",
        # hints that never change what may be answered
        "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        # wishes about style that a local model has no dial for
        "reasoning_effort", "verbosity",
    }
)  # fmt: skip
"""Fields that are accepted and have no effect. Everything else that is not read is refused by name."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A Chat Completions request; `include_usage` asks for a last chunk with the usage."""

    call: LlmChat
    include_usage: bool = False


def read_chat_request(body: Mapping[str, Any]) -> ChatRequest:
    """Read a request body. Raises InvalidRequest, or Unsupported for a field that is not served."""
    fields = Reader(body)
    fields.neutral("modalities", ["text"])
    model = fields.text("model")
    messages = read_messages(fields.items("messages"))
    tools = read_tools(fields.items("tools"))
    structure = read_structure(fields, fields.child("response_format"))
    parallel = fields.flag("parallel_tool_calls")
    call = LlmChat(
        messages=messages,
        tools=tools,
        tool_choice=read_tool_choice(fields.value("tool_choice"), tools),
        parallel_tool_calls=True if parallel is None else parallel,
        schema=structure.schema,
        regex=structure.regex,
        choice=structure.choice,
        sampling=read_chat_sampling(fields, max_tokens=_max_tokens(fields), logprobs=_logprobs(fields)),
        model=model,
        stream=fields.flag("stream") or False,
    )
    include_usage = _include_usage(fields.child("stream_options"))
    fields.end(CHAT_INERT)
    if call.sampling.top_logprobs and not call.sampling.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs", fix='set "logprobs": true')
    return ChatRequest(call, include_usage)


def _max_tokens(fields: Reader) -> int | None:
    old, new = (fields.integer(name, 1, MOST_TOKENS) for name in ("max_tokens", "max_completion_tokens"))
    if old is not None and new is not None and old != new:
        raise InvalidRequest(
            "max_tokens and max_completion_tokens say different things", fix="send max_completion_tokens only"
        )
    return old if new is None else new


def _logprobs(fields: Reader) -> bool:
    return fields.flag("logprobs") or False


def _include_usage(options: Reader | None) -> bool:
    if options is None:
        return False
    wanted = options.flag("include_usage") or False
    options.end({"include_obfuscation"})  # padding against eavesdroppers; the wire here is local
    return wanted
