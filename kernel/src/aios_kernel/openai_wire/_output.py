"""Output items of the Responses API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aios_kernel.openai_wire._tally import token_logprobs
from aios_kernel.openai_wire.exchange import fresh_id
from aios_kernel.syscalls import LlmResult, TokenLogprob, ToolCall


def output_of(result: LlmResult) -> list[dict[str, Any]]:
    """The items of a whole answer: its text, then its tool calls; an empty message when there is neither."""
    calls = [function_call(call) for call in result.tool_calls]
    if not result.text and calls:
        return calls
    status = "incomplete" if result.finish_reason == "length" else "completed"
    return [message(fresh_id("msg_"), [text_part(result.text, result.logprobs)], status), *calls]


def message(item_id: str, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
    """A message of the assistant."""
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": token_logprobs(logprobs)}


def function_call(
    call: ToolCall, *, item_id: str | None = None, arguments: str | None = None, status: str = "completed"
) -> dict[str, Any]:
    """A tool call; `arguments` replaces the call's own while it is being told."""
    return {
        "id": item_id or fresh_id("fc_"),
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments if arguments is None else arguments,
    }
