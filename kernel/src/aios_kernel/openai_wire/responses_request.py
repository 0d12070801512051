"""The Responses API: reading a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aios_kernel.errors import InvalidRequest
from aios_kernel.openai_wire._format import Structure, read_structure
from aios_kernel.openai_wire._items import read_input
from aios_kernel.openai_wire._reader import Reader, refused
from aios_kernel.openai_wire._sampling import MOST_TOKENS, read_sampling
from aios_kernel.openai_wire._tools import read_tool_choice, read_tools
from aios_kernel.syscalls import LlmChat

RESPONSES_INERT = frozenset(
    {
        # whose request it is: the connection says that here
        "user", "safety_identifier",
        # where OpenAI keeps and bills it
        "store", "service_tier",
        # hints that never change what may be answered
        "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        # a limit on built-in tools, of which there are none
        "max_tool_calls",
        # wishes that a local model has no dial for
        "reasoning",
    }
)  # fmt: skip
"""Fields that are accepted and have no effect (`metadata` comes back in the answer)."""

LOGPROBS = "message.output_text.logprobs"
INCLUDED = frozenset({LOGPROBS, "reasoning.encrypted_content"})
"""What `include` may ask for; there is no encrypted reasoning to give."""


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """A Responses request; `echo` holds the fields that the answer repeats."""

    call: LlmChat
    echo: dict[str, Any]


def read_responses_request(body: Mapping[str, Any]) -> ResponsesRequest:
    """Read a request body. Raises InvalidRequest, or Unsupported for a field that is not served."""
    fields = Reader(body)
    echo = _echo(body)
    _refuse_state(fields)
    model, instructions = fields.text("model"), fields.text("instructions")
    tools = read_tools(fields.items("tools"), flat=True)
    parallel = fields.flag("parallel_tool_calls")
    structure = _structure(fields)
    call = LlmChat(
        messages=read_input(fields, instructions),
        tools=tools,
        tool_choice=read_tool_choice(fields.value("tool_choice"), tools, flat=True),
        parallel_tool_calls=True if parallel is None else parallel,
        schema=structure.schema,
        regex=structure.regex,
        choice=structure.choice,
        sampling=read_sampling(
            fields, max_tokens=fields.integer("max_output_tokens", 1, MOST_TOKENS), logprobs=_logprobs(fields, body)
        ),
        model=model,
        stream=fields.flag("stream") or False,
    )
    options = fields.child("stream_options")
    if options is not None:
        options.end({"include_obfuscation"})
    fields.mapping("metadata")
    fields.end(RESPONSES_INERT)
    return ResponsesRequest(call, echo)


def _refuse_state(fields: Reader) -> None:
    """Nothing is kept between requests: refuse what would build on an earlier one, or run on without the client."""
    if fields.value("previous_response_id") is not None:
        raise refused("previous_response_id", fix="send the earlier items in `input`: no response is kept here")
    if fields.value("n") not in (None, 1):
        raise refused("n", fix="ask for several answers by Chat Completions; a response is one")
    fields.neutral("background", False)
    fields.neutral("truncation", "disabled")


def _structure(fields: Reader) -> Structure:
    text = fields.child("text")
    structure = read_structure(fields, text.child("format") if text is not None else None, flat=True)
    if text is not None:
        text.end({"verbosity"})
    return structure


def _logprobs(fields: Reader, body: Mapping[str, Any]) -> bool:
    """Asked for by `include`, or by `top_logprobs` alone."""
    wanted = bool(body.get("top_logprobs"))
    for path, name in fields.items("include"):
        if name == LOGPROBS:
            wanted = True
        elif not isinstance(name, str) or name not in INCLUDED:
            raise refused(f"{path} = {name!r}")
    return wanted


_ECHO: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
}
"""Fields that the answer repeats, and what stands there when the request does not set them."""


def _echo(body: Mapping[str, Any]) -> dict[str, Any]:
    echo = {name: default if body.get(name) is None else body[name] for name, default in _ECHO.items()}
    if not isinstance(echo["metadata"], dict):
        raise InvalidRequest('the field "metadata" must be a JSON object')
    # The answer's own types want these two, which a request may leave out.
    if isinstance(echo["text"], dict) and echo["text"].get("format") is None:
        echo["text"] = {**echo["text"], "format": {"type": "text"}}
    if isinstance(echo["tools"], list):
        echo["tools"] = [
            {"strict": False, "parameters": {}, **tool} for tool in echo["tools"] if isinstance(tool, dict)
        ]
    return echo
