"""Chat Completions: writing the answer, whole or as chunks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aios_kernel.errors import AiosError
from aios_kernel.openai_wire._tally import chat_usage, token_logprobs, window_cut
from aios_kernel.openai_wire.chat_request import read_chat_request
from aios_kernel.openai_wire.error_reply import error_object
from aios_kernel.openai_wire.exchange import event, fresh_id
from aios_kernel.syscalls import LlmDelta, LlmResult, ToolCall

_DONE = b"data: [DONE]\n\n"


class ChatExchange:
    """A Chat Completions request and its answer; see `Exchange`.

    Until the result says which model served, chunks carry the name that was asked for.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        """Read the request. Raises InvalidRequest, or Unsupported for a field that is not served."""
        request = read_chat_request(body)
        self.call = request.call
        self._include_usage = request.include_usage
        self._id = fresh_id("chatcmpl-")
        self._created = int(time.time())
        self._model = self.call.model or ""
        self._tool_calls = Counter[int]()

    def reply(self, result: LlmResult) -> dict[str, Any]:
        """The `chat.completion` object."""
        reply: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": result.model,
            "choices": [
                {
                    "index": index,
                    "message": _message(answer),
                    "logprobs": self._logprobs(answer),
                    "finish_reason": answer.finish_reason,
                }
                for index, answer in enumerate([result, *result.others])
            ],
            "usage": chat_usage(result.usage),
        }
        return reply | self._extensions(result)

    def begin(self) -> bytes:
        """The chunks with the role, one for each answer."""
        start = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(event(self._chunk(start, index)) for index in range(self.call.sampling.n))

    def delta(self, delta: LlmDelta) -> bytes:
        """A chunk of text, then one with the tool calls; nothing for an empty piece."""
        data = b""
        if delta.text or delta.logprobs:
            data += event(self._chunk({"content": delta.text}, delta.index, logprobs=self._logprobs(delta)))
        if delta.tool_calls:
            calls = [self._numbered(call, delta.index) for call in delta.tool_calls]
            data += event(self._chunk({"tool_calls": calls}, delta.index))
        return data

    def end(self, result: LlmResult) -> bytes:
        """The chunks with the finish reasons, the usage if it was asked for, and the end mark."""
        self._model = result.model
        data = event(self._chunk({}, finish_reason=result.finish_reason) | self._extensions(result))
        for index, answer in enumerate(result.others, start=1):
            data += event(self._chunk({}, index, finish_reason=answer.finish_reason))
        if self._include_usage:
            data += event(self._chunk(None) | {"usage": chat_usage(result.usage)})
        return data + _DONE

    def fail(self, error: AiosError) -> bytes:
        """An error where a chunk was due; OpenAI's SDK raises it."""
        return event({"error": error_object(error)})

    def _chunk(
        self,
        delta: dict[str, Any] | None,
        index: int = 0,
        *,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [] if delta is None else [choice],
        }
        return chunk | {"usage": None} if self._include_usage else chunk

    def _numbered(self, call: ToolCall, index: int) -> dict[str, Any]:
        self._tool_calls[index] += 1
        return {"index": self._tool_calls[index] - 1, **_tool_call(call)}

    def _logprobs(self, piece: LlmResult | LlmDelta) -> dict[str, Any] | None:
        if not self.call.sampling.logprobs:
            return None
        return {"content": token_logprobs(piece.logprobs), "refusal": None}

    def _extensions(self, result: LlmResult) -> dict[str, Any]:
        """What OpenAI's answers do not have.

        The tokens (ids) that the model itself would have chosen, of forced decoding; the log-probabilities of the
        prompt's tokens but the first; what did not fit the window and was left out.
        """
        own: dict[str, Any] = {"aios_argmax": result.argmax} if result.argmax else {}
        if self.call.sampling.prompt_logprobs is not None:
            own["prompt_logprobs"] = token_logprobs(result.prompt_logprobs)
        return own | window_cut(result.window)


def _message(result: LlmResult) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if result.tool_calls and not result.text else result.text,
        "refusal": None,
        "annotations": [],
    }
    if result.tool_calls:
        message["tool_calls"] = [_tool_call(call) for call in result.tool_calls]
    return message


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
