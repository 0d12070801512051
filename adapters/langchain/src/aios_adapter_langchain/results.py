"""From the kernel's answer to LangChain's messages, whole or in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers.openai_tools import make_invalid_tool_call, parse_tool_call
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from aios_adapter_langchain.request import ModelRequest
from aios_kernel.syscalls import LlmDelta, LlmResult, TokenLogprob, ToolCall, Usage

PROVIDER = "aios"
"""`model_provider` in the metadata of answers."""


def chat_result(request: ModelRequest, results: Sequence[LlmResult]) -> ChatResult:
    """What `_generate` returns: one generation an answer."""
    return ChatResult(
        generations=[
            ChatGeneration(message=_message(request, result), generation_info=_info(request, result))
            for result in results
        ],
        llm_output={
            "token_usage": token_usage(request, results),
            "model_name": results[0].model,
            "model_provider": PROVIDER,
        },
    )


def token_usage(request: ModelRequest, results: Sequence[LlmResult]) -> dict[str, Any]:
    """OpenAI's usage object for several answers to one prompt."""
    usages = [result.usage for result in results]
    total = Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )
    return request.exchange.reply(LlmResult(model="", usage=total))["usage"]


def wire_logprobs(request: ModelRequest, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """OpenAI's log-probabilities object; None unless they were asked for."""
    return request.exchange.reply(LlmResult(model="", logprobs=list(logprobs)))["choices"][0]["logprobs"]


class ChunkWriter:
    """Turns the pieces of one streamed answer into chunks."""

    def __init__(self, request: ModelRequest) -> None:
        self._request = request
        self._text: list[str] = []
        self._calls = 0

    def chunks(self, piece: LlmDelta | LlmResult) -> Iterator[ChatGenerationChunk]:
        """The chunks of a piece; the result's has usage, finish reason and what was parsed."""
        if isinstance(piece, LlmResult):
            yield self._last(piece)
            return
        if piece.text or piece.logprobs:
            self._text.append(piece.text)
            logprobs = wire_logprobs(self._request, piece.logprobs)
            yield ChatGenerationChunk(
                message=AIMessageChunk(content=piece.text),
                generation_info=None if logprobs is None else {"logprobs": logprobs},
            )
        for call in piece.tool_calls:
            chunk = tool_call_chunk(name=call.name, args=call.arguments, id=call.id, index=self._calls)
            self._calls += 1
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[chunk]))

    def _last(self, result: LlmResult) -> ChatGenerationChunk:
        message = AIMessageChunk(
            content="",
            additional_kwargs=_additions(self._request, "".join(self._text), bool(self._calls)),
            response_metadata={"model_provider": PROVIDER},
            usage_metadata=_usage(result) if self._request.show_usage else None,
        )
        info = {"finish_reason": result.finish_reason, "model_name": result.model, **_left_out(result)}
        return ChatGenerationChunk(message=message, generation_info=info)


def _message(request: ModelRequest, result: LlmResult) -> AIMessage:
    calls, invalid = _tool_calls(result.tool_calls)
    return AIMessage(
        content=result.text,
        tool_calls=calls,
        invalid_tool_calls=invalid,
        additional_kwargs=_additions(request, result.text, bool(result.tool_calls)),
        usage_metadata=_usage(result),
    )


def _tool_calls(calls: Sequence[ToolCall]) -> tuple[list[LangChainToolCall], list[InvalidToolCall]]:
    """Calls with their arguments parsed, and those whose arguments are no JSON object."""
    good: list[LangChainToolCall] = []
    bad: list[InvalidToolCall] = []
    for call in calls:
        raw = {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
        try:
            parsed = parse_tool_call(raw, return_id=True)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the model's text, the agent is told
            bad.append(make_invalid_tool_call(raw, str(error)))
        else:
            if parsed is not None:
                good.append(LangChainToolCall(**parsed))
    return good, bad


def _additions(request: ModelRequest, text: str, calls_tools: bool) -> dict[str, Any]:
    """With a `response_format`: `parsed`, the text as an instance of the class that was asked for, and `refusal`."""
    if not request.structured:
        return {}
    parsed = None if calls_tools or request.parse is None else _parsed(request.parse, text)
    return {"parsed": parsed, "refusal": None}


def _parsed(kind: Any, text: str) -> Any:
    """An instance, or None for a text that was cut off: LangChain's parser then says so, with the text."""
    try:
        return kind.model_validate_json(text) if hasattr(kind, "model_validate_json") else kind.parse_raw(text)
    except ValueError:  # pydantic's ValidationError is one
        return None


def _info(request: ModelRequest, result: LlmResult) -> dict[str, Any]:
    logprobs = wire_logprobs(request, result.logprobs)
    return {"finish_reason": result.finish_reason, "logprobs": logprobs, **_left_out(result)}


def _left_out(result: LlmResult) -> dict[str, Any]:
    """What did not fit the model's window, if anything, as `aios_window`."""
    return {"aios_window": msgspec.to_builtins(result.window)} if result.window is not None else {}


def _usage(result: LlmResult) -> UsageMetadata:
    usage = result.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )
