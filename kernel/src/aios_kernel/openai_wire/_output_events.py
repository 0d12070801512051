"""The event sequence in which the Responses API tells its output items."""

from __future__ import annotations

from typing import Any

from aios_kernel.openai_wire._output import function_call, message, text_part
from aios_kernel.openai_wire._tally import token_logprobs
from aios_kernel.openai_wire.exchange import event, fresh_id
from aios_kernel.syscalls import LlmDelta, TokenLogprob, ToolCall


class OutputEvents:
    """Numbers the events of one response, opens and closes its items, and keeps the finished ones in `output`."""

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self._sequence = 0
        self._open: str | None = None
        """Id of the message that is being told."""
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []

    def event(self, kind: str, /, **fields: Any) -> bytes:
        """One numbered event."""
        self._sequence += 1
        return event({"type": kind, "sequence_number": self._sequence - 1, **fields}, kind)

    def delta(self, delta: LlmDelta) -> bytes:
        """The events of one piece: text first, then tool calls."""
        data = self._text(delta.text, delta.logprobs) if delta.text or delta.logprobs else b""
        if delta.tool_calls:
            data += self._close_message()
            data += b"".join(self._call(call) for call in delta.tool_calls)
        return data

    def close(self) -> bytes:
        """Close what is open; an answer without any item becomes an empty message."""
        data = b"" if self.output or self._open else self._open_message()
        return data + self._close_message()

    def _text(self, text: str, logprobs: list[TokenLogprob]) -> bytes:
        data = b"" if self._open else self._open_message()
        self._texts.append(text)
        self._logprobs += logprobs
        return data + self._part_event("response.output_text.delta", delta=text, logprobs=token_logprobs(logprobs))

    def _open_message(self) -> bytes:
        self._open = fresh_id("msg_")
        self._texts, self._logprobs = [], []
        return self.event(
            "response.output_item.added", output_index=len(self.output), item=message(self._open, [], "in_progress")
        ) + self._part_event("response.content_part.added", part=text_part("", []))

    def _close_message(self) -> bytes:
        if self._open is None:
            return b""
        text, logprobs = "".join(self._texts), self._logprobs
        data = self._part_event("response.output_text.done", text=text, logprobs=token_logprobs(logprobs))
        part = text_part(text, logprobs)
        data += self._part_event("response.content_part.done", part=part)
        item = message(self._open, [part], "completed")
        self._open = None
        return data + self._item_done(item)

    def _call(self, call: ToolCall) -> bytes:
        item_id, index = fresh_id("fc_"), len(self.output)
        begun = function_call(call, item_id=item_id, arguments="", status="in_progress")
        return (
            self.event("response.output_item.added", output_index=index, item=begun)
            + self.event(
                "response.function_call_arguments.delta", item_id=item_id, output_index=index, delta=call.arguments
            )
            + self.event(
                "response.function_call_arguments.done",
                item_id=item_id,
                output_index=index,
                name=call.name,
                arguments=call.arguments,
            )
            + self._item_done(function_call(call, item_id=item_id))
        )

    def _item_done(self, item: dict[str, Any]) -> bytes:
        self.output.append(item)
        return self.event("response.output_item.done", output_index=len(self.output) - 1, item=item)

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        return self.event(kind, item_id=self._open, output_index=len(self.output), content_index=0, **fields)
