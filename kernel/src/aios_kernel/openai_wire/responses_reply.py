"""The Responses API: writing the answer, whole or as events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from aios_kernel.errors import AiosError, Busy, InvalidRequest
from aios_kernel.openai_wire._output import output_of
from aios_kernel.openai_wire._output_events import OutputEvents
from aios_kernel.openai_wire._tally import responses_usage, window_cut
from aios_kernel.openai_wire.error_reply import error_object
from aios_kernel.openai_wire.exchange import fresh_id
from aios_kernel.openai_wire.responses_request import read_responses_request
from aios_kernel.syscalls import LlmDelta, LlmResult


class ResponsesExchange:
    """A Responses request and its answer; see `Exchange`.

    Until the result says which model served, events carry the name that was asked for.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        """Read the request. Raises InvalidRequest, or Unsupported for a field that is not served."""
        request = read_responses_request(body)
        self.call = request.call
        self._echo = request.echo
        self._id = fresh_id("resp_")
        self._created = int(time.time())
        self._events = OutputEvents()

    def reply(self, result: LlmResult) -> dict[str, Any]:
        """The `response` object."""
        return self._finished(result, output_of(result))

    def begin(self) -> bytes:
        """`response.created` and `response.in_progress`."""
        response = self._response("in_progress", self.call.model or "", [])
        return b"".join(
            self._events.event(name, response=response) for name in ("response.created", "response.in_progress")
        )

    def delta(self, delta: LlmDelta) -> bytes:
        """The events of a piece of text and of tool calls."""
        return self._events.delta(delta)

    def end(self, result: LlmResult) -> bytes:
        """The ends of open items, then `response.completed`, or `response.incomplete` at the token limit."""
        data = self._events.close()
        response = self._finished(result, self._events.output)
        return data + self._events.event(f"response.{response['status']}", response=response)

    def fail(self, error: AiosError) -> bytes:
        """`response.failed`, then an `error` event, which OpenAI's SDK raises."""
        response = self._response("failed", self.call.model or "", self._events.output)
        response["error"] = {"code": _code_of(error), "message": str(error)}
        told = error_object(error)
        return self._events.event("response.failed", response=response) + self._events.event(
            "error", error=told, code=told["code"], message=told["message"], param=None
        )

    def _finished(self, result: LlmResult, output: list[dict[str, Any]]) -> dict[str, Any]:
        cut = result.finish_reason == "length"
        response = self._response("incomplete" if cut else "completed", result.model, output)
        response["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        response["completed_at"] = None if cut else int(time.time())
        response["usage"] = responses_usage(result.usage)
        if result.argmax:
            response["aios_argmax"] = result.argmax
        return response | window_cut(result.window)

    def _response(self, status: str, model: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": model,
            "output": output,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **self._echo,
        }


def _code_of(error: AiosError) -> str:
    """The nearest of the codes that a `response.failed` may carry."""
    if isinstance(error, Busy):
        return "rate_limit_exceeded"
    return "invalid_prompt" if isinstance(error, InvalidRequest) else "server_error"
