"""`<tool_call>{"name": .., "arguments": {..}}</tool_call>`, any number of them, with text between (Qwen, Hermes).

It is also the format that models without one of their own are asked to use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aios_kernel.chat.formats.json_call import (
    ends_in_string,
    json_value,
    one_or_more,
    quoted,
    read_call,
    tag,
    text_with,
)
from aios_kernel.chat.formats.pieces import Pieces, overlap
from aios_kernel.chat.formats.protocol import Structure
from aios_kernel.chat.protocol import TextPiece
from aios_kernel.syscalls import ToolCall, ToolSpec

BEGIN = "<tool_call>"
END = "</tool_call>"


@dataclass(frozen=True, slots=True)
class HermesFormat:
    """See `ToolFormat`.

    Attributes:
        gap: what stands between the markers and the JSON.
        native: see `ToolFormat.native`.
    """

    gap: str = "\n"
    native: bool = True
    markers: tuple[str, ...] = (BEGIN, END)

    def parser(self) -> HermesParser:
        """See `ToolFormat.parser`."""
        return HermesParser()

    def calls(self, tools: Sequence[ToolSpec], *, many: bool) -> Structure:
        """See `ToolFormat.calls`."""
        return one_or_more([self._tag(tool) for tool in tools], self.gap if many else None)

    def among_text(self, tools: Sequence[ToolSpec], *, many: bool) -> Structure | None:
        """See `ToolFormat.among_text`."""
        return text_with(BEGIN, [self._tag(tool) for tool in tools], many=many)

    def write(self, call: ToolCall) -> str:
        """See `ToolFormat.write`."""
        return f'{BEGIN}{self.gap}{{"name": {quoted(call.name)}, "arguments": {call.arguments}}}{self.gap}{END}'

    def call_id(self, call_id: str) -> str:
        """See `ToolFormat.call_id`."""
        return call_id

    def _tag(self, tool: ToolSpec) -> Structure:
        begin = f'{BEGIN}{self.gap}{{"name": {quoted(tool.name)}, "arguments": '
        return tag(begin, json_value(tool.parameters), f"}}{self.gap}{END}")


class HermesParser:
    """See `ToolCallParser`. Calls are given as they end."""

    def __init__(self) -> None:
        self._out = Pieces()
        self._held = ""
        self._inside = False
        self._searched = 0
        self._called = False

    def push(self, text: str) -> TextPiece:
        """See `ToolCallParser.push`."""
        self._held += text
        while self._advance():
            pass
        return self._out.take()

    def finish(self) -> TextPiece:
        """See `ToolCallParser.finish`. A call whose end marker is missing counts if its JSON is complete."""
        while self._inside:
            if not self._take_call(self._held):
                # Not a call: all up to the first end marker is text, and the rest may hold calls again.
                body, end, rest = self._held.partition(END)
                self._to_text(BEGIN + body + end, rest)
                while self._advance():
                    pass
        self._out.text(self._held)
        return self._out.close(called=self._called)

    def _advance(self) -> bool:
        return self._look_for_end() if self._inside else self._look_for_begin()

    def _look_for_begin(self) -> bool:
        before, begin, rest = self._held.partition(BEGIN)
        if begin:
            self._out.text(before)
            self._held, self._inside, self._searched = rest, True, 0
            return True
        keep = overlap(self._held, BEGIN)
        self._out.text(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return False

    def _look_for_end(self) -> bool:
        at = self._held.find(END, self._searched)
        if at < 0:
            self._searched = max(self._searched, len(self._held) - len(END) + 1)
            return False
        body, rest = self._held[:at], self._held[at + len(END) :]
        if self._take_call(body, rest):
            return True
        if ends_in_string(body):  # the end marker is part of an argument
            self._searched = at + len(END)
        else:
            self._to_text(BEGIN + body + END, rest)
        return True

    def _take_call(self, body: str, rest: str = "") -> bool:
        call = read_call(body, "arguments", "parameters")
        if call is None:
            return False
        self._out.calls([call])
        self._held, self._inside, self._called = rest, False, True
        return True

    def _to_text(self, text: str, rest: str) -> None:
        self._out.text(text)
        self._held, self._inside = rest, False
