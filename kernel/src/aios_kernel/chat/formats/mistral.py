"""Mistral: `[TOOL_CALLS]` behind the text, then `[{"name": .., "arguments": {..}}, ..]` or `name[ARGS]{..}`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from aios_kernel.chat.formats.json_call import (
    json_value,
    named_call,
    one_or_more,
    quoted,
    read_call,
    read_calls,
    tag,
    text_with,
)
from aios_kernel.chat.formats.pieces import Pieces, overlap
from aios_kernel.chat.formats.protocol import Structure
from aios_kernel.chat.protocol import TextPiece
from aios_kernel.syscalls import ToolCall, ToolSpec

TAG = "[TOOL_CALLS]"
ARGS = "[ARGS]"
CALL_ID = "[CALL_ID]"


@dataclass(frozen=True, slots=True)
class MistralFormat:
    """See `ToolFormat`.

    Attributes:
        args_marker: calls are written `[TOOL_CALLS]name[ARGS]{..}`, one after the other, as newer models do.
    """

    args_marker: bool = False
    native: bool = True
    markers: tuple[str, ...] = (TAG, ARGS, CALL_ID)

    def parser(self) -> MistralParser:
        """See `ToolFormat.parser`."""
        return MistralParser()

    def calls(self, tools: Sequence[ToolSpec], *, many: bool) -> Structure:
        """See `ToolFormat.calls`."""
        if self.args_marker:
            return one_or_more([self._marked(tool) for tool in tools], "" if many else None)
        tags = [
            tag(f'{{"name": {quoted(tool.name)}, "arguments": ', json_value(tool.parameters), "}") for tool in tools
        ]
        listed = one_or_more(tags, ", " if many else None)
        return {"type": "sequence", "elements": [_constant(f"{TAG} ["), listed, _constant("]")]}

    def among_text(self, tools: Sequence[ToolSpec], *, many: bool) -> Structure | None:
        """See `ToolFormat.among_text`."""
        if self.args_marker:
            return text_with(TAG, [self._marked(tool) for tool in tools], many=many)
        tags = [
            tag(f'{{"name": {quoted(tool.name)}, "arguments": ', json_value(tool.parameters), "}") for tool in tools
        ]
        return text_with(TAG, [tag(f"{TAG} [", one_or_more(tags, ", " if many else None), "]")], many=False)

    def write(self, call: ToolCall) -> str:
        """See `ToolFormat.write`."""
        if self.args_marker:
            return f"{TAG}{call.name}{ARGS}{call.arguments}"
        return f'{TAG} [{{"name": {quoted(call.name)}, "arguments": {call.arguments}}}]'

    def call_id(self, call_id: str) -> str:
        """See `ToolFormat.call_id`: nine letters or digits."""
        return hashlib.sha256(call_id.encode()).hexdigest()[:9]

    def _marked(self, tool: ToolSpec) -> Structure:
        return tag(f"{TAG}{tool.name}{ARGS}", json_value(tool.parameters), "")


class MistralParser:
    """See `ToolCallParser`. Calls are given at the end."""

    def __init__(self) -> None:
        self._out = Pieces()
        self._held = ""
        self._inside = False

    def push(self, text: str) -> TextPiece:
        """See `ToolCallParser.push`."""
        self._held += text
        if not self._inside:
            before, tag_found, rest = self._held.partition(TAG)
            keep = 0 if tag_found else overlap(before, TAG)
            self._out.text(before[: len(before) - keep])
            self._inside = bool(tag_found)
            self._held = rest if tag_found else before[len(before) - keep :]
        return self._out.take()

    def finish(self) -> TextPiece:
        """See `ToolCallParser.finish`."""
        if not self._inside:
            self._out.text(self._held)
            return self._out.close(called=False)
        calls: list[ToolCall] = []
        for part in self._held.split(TAG):
            found = _parse(part)
            if not found:
                self._out.text(TAG + self._held)
                return self._out.close(called=False)
            calls += found
        self._out.calls(calls)
        return self._out.close(called=True)


def _parse(part: str) -> list[ToolCall]:
    name, marker, arguments = part.partition(ARGS)
    if marker:
        calls = [named_call(name.partition(CALL_ID)[0].strip(), arguments)]
    elif (one := read_call(part, "arguments", "parameters")) is not None:
        calls = [one]
    else:
        calls = read_calls(part, "arguments", "parameters")
    return [call for call in calls if call is not None] if all(calls) else []


def _constant(text: str) -> Structure:
    return {"type": "const_string", "value": text}
