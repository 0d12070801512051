"""An answer that is nothing but `{"name": .., "parameters": {..}}`, perhaps after `<|python_tag|>` (Llama 3).

Several calls are divided by `;`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from aios_kernel.chat.formats.json_call import json_value, one_or_more, quoted, read_call, tag
from aios_kernel.chat.formats.pieces import Pieces
from aios_kernel.chat.formats.protocol import Structure
from aios_kernel.chat.protocol import TextPiece
from aios_kernel.syscalls import ToolCall, ToolSpec

TAG = "<|python_tag|>"
_SEPARATOR = "; "


@dataclass(frozen=True, slots=True)
class LlamaFormat:
    """See `ToolFormat`."""

    native: bool = True
    markers: tuple[str, ...] = (TAG,)

    def parser(self) -> LlamaParser:
        """See `ToolFormat.parser`."""
        return LlamaParser()

    def calls(self, tools: Sequence[ToolSpec], *, many: bool) -> Structure:
        """See `ToolFormat.calls`."""
        tags = [
            tag(f'{{"name": {quoted(tool.name)}, "parameters": ', json_value(tool.parameters), "}") for tool in tools
        ]
        return one_or_more(tags, _SEPARATOR if many else None)

    def among_text(self, tools: Sequence[ToolSpec], *, many: bool) -> Structure | None:
        """See `ToolFormat.among_text`: a call is text like any other until nothing follows it."""
        return None

    def write(self, call: ToolCall) -> str:
        """See `ToolFormat.write`."""
        return f'{{"name": {quoted(call.name)}, "parameters": {call.arguments}}}'

    def call_id(self, call_id: str) -> str:
        """See `ToolFormat.call_id`."""
        return call_id


class LlamaParser:
    """See `ToolCallParser`. Calls are given at the end, when it is certain that nothing else was said."""

    def __init__(self) -> None:
        self._out = Pieces()
        self._held = ""
        self._plain = False

    def push(self, text: str) -> TextPiece:
        """See `ToolCallParser.push`."""
        self._held += text
        if not self._plain:
            start = self._held.lstrip()
            self._plain = not (start.startswith(("{", TAG)) or TAG.startswith(start))
        if self._plain:
            self._out.text(self._held)
            self._held = ""
        return self._out.take()

    def finish(self) -> TextPiece:
        """See `ToolCallParser.finish`."""
        calls = _parse(self._held.strip().removeprefix(TAG))
        if calls:
            self._out.calls(calls)
        else:
            self._out.text(self._held)
        return self._out.close(called=bool(calls))


def _parse(text: str) -> list[ToolCall]:
    calls: list[ToolCall] = []
    decoder = json.JSONDecoder(strict=False)
    at = 0
    while (at := _skip(text, at, "; \t\r\n")) < len(text):
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        call = read_call(text[at:end], "parameters", "arguments")
        if call is None:
            return []
        calls.append(call)
        at = end
    return calls


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at
