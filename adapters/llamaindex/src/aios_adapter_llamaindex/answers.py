"""The kernel's answers in LlamaIndex's own types."""

from __future__ import annotations

from typing import Any

import msgspec
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LogProb, MessageRole, TextBlock, ToolCallBlock

from aios_kernel.syscalls import LlmDelta, LlmResult, TokenLogprob, ToolCall, Usage


def chat_response(result: LlmResult, *, as_text: bool = False) -> ChatResponse:
    """A whole answer. With `as_text` the arguments of tool calls stay JSON text, as OpenAI's classes expect them."""
    return ChatResponse(
        message=_message(result.text, result.tool_calls, as_text),
        raw=_raw(result),
        logprobs=_logprobs(result.logprobs),
        additional_kwargs=_counts(result.usage),
    )


class StreamedAnswer:
    """A growing answer: each piece comes with everything said so far."""

    def __init__(self, *, as_text: bool = False) -> None:
        self._as_text = as_text
        self._text = ""
        self._calls: list[ToolCall] = []

    def grown(self, piece: LlmDelta | LlmResult) -> ChatResponse:
        """The answer after a piece; after the last one it has usage and the reason of the end."""
        if isinstance(piece, LlmResult):
            response = chat_response(piece, as_text=self._as_text)
            response.delta = piece.text.removeprefix(self._text)
            return response
        self._text += piece.text
        self._calls += piece.tool_calls
        return ChatResponse(
            message=_message(self._text, self._calls, self._as_text),
            delta=piece.text,
            logprobs=_logprobs(piece.logprobs),
        )


def _message(text: str, calls: list[ToolCall], as_text: bool) -> ChatMessage:
    blocks: list[Any] = [TextBlock(text=text)] if text or not calls else []
    for call in calls:
        arguments = call.arguments if as_text else _parsed(call.arguments)
        blocks.append(ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=arguments))
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)


def _parsed(arguments: str) -> dict[str, Any] | str:
    """Arguments as an object; what is no JSON object stays text, for the integration's own tolerant parser."""
    try:
        return msgspec.json.decode(arguments, type=dict[str, Any])
    except msgspec.DecodeError:
        return arguments


def _counts(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _raw(result: LlmResult) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "model": result.model,
        "finish_reason": result.finish_reason,
        "usage": {
            **_counts(result.usage),
            "prompt_tokens_details": {"cached_tokens": result.usage.cached_tokens},
        },
    }
    if result.argmax:
        raw["aios_argmax"] = result.argmax
    if result.window is not None:
        raw["aios_window"] = msgspec.to_builtins(result.window)
    return raw


def _logprobs(tokens: list[TokenLogprob]) -> list[list[LogProb]] | None:
    """One list a token: the alternatives at its place, or the token alone when none were asked for."""
    if not tokens:
        return None
    return [
        [_logprob(text, value) for text, value in token.top] or [_logprob(token.token, token.logprob)]
        for token in tokens
    ]


def _logprob(token: str, value: float) -> LogProb:
    return LogProb(token=token, logprob=value, bytes=list(token.encode("utf-8", "surrogatepass")))
