"""From the kernel's answer to AutoGen's `CreateResult`."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from autogen_core import FunctionCall
from autogen_core.models import (
    ChatCompletionTokenLogprob,
    CreateResult,
    FinishReasons,
    RequestUsage,
    TopLogprob,
)

from aios_kernel.syscalls import FinishReason, LlmResult, TokenLogprob, ToolCall

_FINISH: dict[FinishReason, FinishReasons] = {"stop": "stop", "length": "length", "tool_calls": "function_calls"}
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")
_MAX_NAME = 64


def create_result(result: LlmResult, offered: Collection[str]) -> CreateResult:
    """The answer in AutoGen's type; `offered` are the names of the tools that the model could call."""
    thought, text = _split_thought(result.text)
    calls = [_function_call(call, offered) for call in result.tool_calls]
    if calls:  # what is said beside calls is a thought, too
        thought = "\n".join(part for part in (thought, text) if part) or None
    return CreateResult(
        finish_reason="function_calls" if calls else _FINISH[result.finish_reason],
        content=calls or text,
        usage=RequestUsage(prompt_tokens=result.usage.prompt_tokens, completion_tokens=result.usage.completion_tokens),
        cached=False,
        logprobs=[_logprob(token) for token in result.logprobs] or None,
        thought=thought,
    )


def account(client: Any, usage: RequestUsage) -> None:
    """Add a call to what the client's `actual_usage()` and `total_usage()` report."""
    for name in ("_actual_usage", "_total_usage"):
        before = getattr(client, name, None)
        if isinstance(before, RequestUsage):
            total = RequestUsage(
                prompt_tokens=before.prompt_tokens + usage.prompt_tokens,
                completion_tokens=before.completion_tokens + usage.completion_tokens,
            )
            setattr(client, name, total)
    if isinstance(getattr(client, "_cur_usage", None), RequestUsage):  # the replay client's word for the last call
        client._cur_usage = usage


def _split_thought(text: str) -> tuple[str | None, str]:
    """Take a reasoning model's `<think>` block off its answer."""
    found = _THOUGHT.match(text)
    return (found[1].strip() or None, text[found.end() :]) if found else (None, text)


def _function_call(call: ToolCall, offered: Collection[str]) -> FunctionCall:
    name = call.name if call.name in offered else _NOT_IN_NAMES.sub("_", call.name)[:_MAX_NAME]
    return FunctionCall(id=call.id, name=name, arguments=call.arguments)


def _logprob(token: TokenLogprob) -> ChatCompletionTokenLogprob:
    return ChatCompletionTokenLogprob(
        token=token.token,
        logprob=token.logprob,
        top_logprobs=[TopLogprob(logprob=logprob, bytes=list(text.encode())) for text, logprob in token.top],
        bytes=list(token.token.encode()),
    )
