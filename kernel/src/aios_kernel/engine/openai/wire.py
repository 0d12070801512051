"""Chat Completions from the client's side: the body of a request, and its streamed answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from aios_kernel.engine.openai.tokens import Piece
from aios_kernel.errors import ContextTooLong, EngineError, EngineUnavailable
from aios_kernel.syscalls import FinishReason, LlmChat, Message, Sampling, ToolCall, Usage

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls"}
"""Finish reasons by their spelling; others, such as a content filter's, count as `stop`."""
_GIVEN_UP = frozenset({"abort", "error"})
"""Of an answer that its server gave up: vLLM and SGLang when a request is aborted or its engine dies."""
_TOO_LONG = ("context_length_exceeded", "exceed_context_size", "maximum context length", "model's context length")
"""How servers say it: OpenAI, llama-server, vLLM, SGLang."""
_MODES = frozenset({"auto", "none", "required"})


def request_body(call: LlmChat, model: str, seed: int) -> dict[str, Any]:
    """The JSON object that asks `model` for one streamed answer; what the call leaves open is left to the server.

    `seed` takes the place of the call's, if it has one: several answers to one call must not be the same.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in call.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if call.tools:
        body["tools"] = [{"type": "function", "function": _function(tool)} for tool in call.tools]
        body["tool_choice"] = _choice(call.tool_choice)
        if not call.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    if call.schema is not None:
        body["response_format"] = _format(call.schema)
    return body | _sampling(call.sampling, seed)


def _message(message: Message) -> dict[str, Any]:
    spelled: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        spelled["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        spelled["tool_call_id"] = message.tool_call_id or ""
    return spelled


def _function(tool: Any) -> dict[str, Any]:
    parameters = tool.parameters or {"type": "object", "properties": {}}
    return {"name": tool.name, "description": tool.description, "parameters": parameters}


def _choice(choice: str) -> str | dict[str, Any]:
    return choice if choice in _MODES else {"type": "function", "function": {"name": choice}}


def _format(schema: dict[str, Any]) -> dict[str, Any]:
    if not schema:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _sampling(sampling: Sampling, seed: int) -> dict[str, Any]:
    """What is set, in OpenAI's names and, behind them, those of common servers' extensions."""
    values = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": None if sampling.seed is None else seed,
        "stop": sampling.stop or None,
        "max_tokens": sampling.max_tokens,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
    }
    return {name: value for name, value in values.items() if value is not None}


@dataclass(slots=True)
class _PartialCall:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list[str])


class ReplyReader:
    """Puts the chunks of one streamed answer together. Tool calls are given when they are complete: at the end."""

    def __init__(self) -> None:
        self._calls: list[_PartialCall] = []
        self._at: dict[int, _PartialCall] = {}  # the call that an index stands for now
        self._reason: FinishReason | None = None
        self._given_up = False
        self._usage: Usage | None = None

    def chunk(self, data: dict[str, Any]) -> str:
        """Take a chunk; give its text. Raises EngineError for an error in the middle, or what is no chunk."""
        if data.get("error"):
            said = f"the model server failed in the middle of an answer: {message_of(data)}"
            raise ContextTooLong(said, fix="shorten the conversation") if is_too_long(str(data)) else EngineError(said)
        try:
            if data.get("usage"):
                self._usage = _usage(data["usage"])
            choices = data.get("choices") or []
            return self._choice(choices[0]) if choices else ""
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(f"the model server sent what is no chunk of a chat: {error!r}") from error

    def end(self) -> Piece:
        """What is left when the stream has ended. Raises EngineUnavailable when it broke off."""
        if self._reason is None:
            what = "was given up by it" if self._given_up else "broke off before its end"
            raise EngineUnavailable(f"the model server's answer {what}", fix="look into the server's log")
        calls = tuple(
            ToolCall(id=call.id or f"call_{number}", name=call.name, arguments="".join(call.arguments) or "{}")
            for number, call in enumerate(self._calls)
        )
        return Piece.of(tool_calls=calls, end=self._reason, usage=self._usage)

    def _choice(self, choice: dict[str, Any]) -> str:
        delta = choice.get("delta") or {}
        for part in delta.get("tool_calls") or []:
            function = part.get("function") or {}
            call = self._call(int(part.get("index") or 0), part.get("id") or "", function.get("name") or "")
            call.arguments.append(function.get("arguments") or "")
        reason = choice.get("finish_reason")
        self._given_up = self._given_up or reason in _GIVEN_UP
        if reason and not self._given_up:
            self._reason = _REASONS.get(reason, "stop")
        return delta.get("content") or ""

    def _call(self, index: int, number: str, name: str) -> _PartialCall:
        """The call that a part belongs to. Some servers (Ollama) give all of them index 0, but ids of their own."""
        call = self._at.get(index)
        if call is None or (name and call.name and number and number != call.id):
            call = self._at[index] = _PartialCall()
            self._calls.append(call)
        call.id = call.id or number
        call.name += name
        return call


def _usage(usage: dict[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        cached_tokens=int(details.get("cached_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
    )


def is_too_long(said: str) -> bool:
    """Whether an error says that the prompt does not fit the model's window."""
    return any(words in said for words in _TOO_LONG)


def message_of(body: object) -> str:
    """What an error body says, on one line; servers spell it in several ways."""
    while isinstance(body, dict):
        fields = cast("dict[str, object]", body)
        body = fields.get("error") or fields.get("message") or fields.get("detail") or "no message"
    return " ".join(str(body).split())[:500]
