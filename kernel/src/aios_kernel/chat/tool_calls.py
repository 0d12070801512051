"""Parsers that take tool calls out of a model's text as it streams in.

All of them keep three promises: text that may become a call is held back; what is not a well-formed call stays text,
every character of it; and the result does not depend on how the text was cut into pieces.
"""

from __future__ import annotations

import json
import secrets
from typing import Any, Protocol, cast

from aios_kernel.chat.protocol import TextPiece
from aios_kernel.chat.tool_format import HERMES_BEGIN, HERMES_END, LLAMA_TAG, MISTRAL_ARGS, MISTRAL_TAG, ToolFormat
from aios_kernel.syscalls import ToolCall


class ToolCallParser(Protocol):
    """Separates text from tool calls."""

    def push(self, text: str) -> TextPiece:
        """Take the next text and give what is certain."""
        ...

    def finish(self) -> TextPiece:
        """Decide on what was held back; nothing follows."""
        ...


def parser_for(tool_format: ToolFormat) -> ToolCallParser:
    """A fresh parser of a format."""
    if tool_format.style == "hermes":
        return HermesParser()
    return LlamaParser() if tool_format.style == "llama" else MistralParser()


class _Out:
    """Collects a piece.

    White space around calls belongs to the format, not to the answer: it is held until text follows, and dropped when
    a call or the end does.
    """

    def __init__(self) -> None:
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
        self._space = ""
        self._bare = True

    def text(self, text: str) -> None:
        """Add text of the answer."""
        if self._bare and not text.strip():
            self._space += text
        elif text:
            self._text.append(self._space + text)
            self._space, self._bare = "", False

    def calls(self, calls: list[ToolCall]) -> None:
        """Add tool calls."""
        self._calls += calls
        self._space, self._bare = "", True

    def take(self) -> TextPiece:
        """What came together since."""
        piece = TextPiece("".join(self._text), tuple(self._calls))
        self._text, self._calls = [], []
        return piece

    def close(self, *, called: bool) -> TextPiece:
        """The last piece; white space survives in an answer without calls."""
        if not called:
            self._text.append(self._space)
        return self.take()


class HermesParser:
    """`<tool_call>{..}</tool_call>`, any number of them, with text between."""

    def __init__(self) -> None:
        self._out = _Out()
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
                body, end, rest = self._held.partition(HERMES_END)
                self._to_text(HERMES_BEGIN + body + end, rest)
                while self._advance():
                    pass
        self._out.text(self._held)
        return self._out.close(called=self._called)

    def _advance(self) -> bool:
        return self._look_for_end() if self._inside else self._look_for_begin()

    def _look_for_begin(self) -> bool:
        before, begin, rest = self._held.partition(HERMES_BEGIN)
        if begin:
            self._out.text(before)
            self._held, self._inside, self._searched = rest, True, 0
            return True
        keep = overlap(self._held, HERMES_BEGIN)
        self._out.text(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return False

    def _look_for_end(self) -> bool:
        at = self._held.find(HERMES_END, self._searched)
        if at < 0:
            self._searched = max(self._searched, len(self._held) - len(HERMES_END) + 1)
            return False
        body, rest = self._held[:at], self._held[at + len(HERMES_END) :]
        if self._take_call(body, rest):
            return True
        if _ends_in_string(body):  # the end marker is part of an argument
            self._searched = at + len(HERMES_END)
        else:
            self._to_text(HERMES_BEGIN + body + HERMES_END, rest)
        return True

    def _take_call(self, body: str, rest: str = "") -> bool:
        call = _call(_loads(body), "arguments", "parameters")
        if call is None:
            return False
        self._out.calls([call])
        self._held, self._inside, self._called = rest, False, True
        return True

    def _to_text(self, text: str, rest: str) -> None:
        self._out.text(text)
        self._held, self._inside = rest, False


class LlamaParser:
    """An answer that is nothing but `{"name": .., "parameters": {..}}`, perhaps several, divided by `;`."""

    def __init__(self) -> None:
        self._out = _Out()
        self._held = ""
        self._plain = False

    def push(self, text: str) -> TextPiece:
        """See `ToolCallParser.push`. Calls are given at the end, when it is certain that nothing else was said."""
        self._held += text
        if not self._plain:
            start = self._held.lstrip()
            self._plain = not (start.startswith(("{", LLAMA_TAG)) or LLAMA_TAG.startswith(start))
        if self._plain:
            self._out.text(self._held)
            self._held = ""
        return self._out.take()

    def finish(self) -> TextPiece:
        """See `ToolCallParser.finish`."""
        calls = self._parse(self._held.strip().removeprefix(LLAMA_TAG))
        if calls:
            self._out.calls(calls)
        else:
            self._out.text(self._held)
        return self._out.close(called=bool(calls))

    def _parse(self, text: str) -> list[ToolCall]:
        calls: list[ToolCall] = []
        decoder = json.JSONDecoder(strict=False)
        at = 0
        while (at := _skip(text, at, "; \t\r\n")) < len(text):
            try:
                value, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                return []
            call = _call(value, "parameters", "arguments")
            if call is None:
                return []
            calls.append(call)
        return calls


class MistralParser:
    """`[TOOL_CALLS] [{..}, ..]` or `[TOOL_CALLS]name[ARGS]{..}`, repeated, behind the text."""

    def __init__(self) -> None:
        self._out = _Out()
        self._held = ""
        self._inside = False

    def push(self, text: str) -> TextPiece:
        """See `ToolCallParser.push`. Calls are given at the end."""
        self._held += text
        if not self._inside:
            before, tag, rest = self._held.partition(MISTRAL_TAG)
            keep = 0 if tag else overlap(before, MISTRAL_TAG)
            self._out.text(before[: len(before) - keep])
            self._inside = bool(tag)
            self._held = rest if tag else before[len(before) - keep :]
        return self._out.take()

    def finish(self) -> TextPiece:
        """See `ToolCallParser.finish`."""
        if not self._inside:
            self._out.text(self._held)
            return self._out.close(called=False)
        calls: list[ToolCall] = []
        for part in self._held.split(MISTRAL_TAG):
            found = self._parse(part)
            if not found:
                self._out.text(MISTRAL_TAG + self._held)
                return self._out.close(called=False)
            calls += found
        self._out.calls(calls)
        return self._out.close(called=True)

    def _parse(self, part: str) -> list[ToolCall]:
        name, marker, arguments = part.partition(MISTRAL_ARGS)
        if marker:
            calls = [_call({"name": name.strip(), "arguments": _loads(arguments)}, "arguments")]
        else:
            values = _loads(part)
            listed = cast("list[Any]", values) if isinstance(values, list) else [values]
            calls = [_call(value, "arguments", "parameters") for value in listed]
        return [call for call in calls if call is not None] if all(calls) else []


def overlap(text: str, marker: str) -> int:
    """Length of the longest proper start of `marker` that `text` ends with."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


def _call(value: Any, *argument_keys: str) -> ToolCall | None:
    """A tool call from its JSON value; None if it is none. The arguments may be an object or its JSON text."""
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    name = fields.get("name")
    if not isinstance(name, str) or not name:
        return None
    arguments = next((fields[key] for key in argument_keys if fields.get(key) is not None), {})
    if isinstance(arguments, str):
        arguments = _loads(arguments)
    if not isinstance(arguments, dict):
        return None
    text = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(id=f"call_{secrets.token_hex(12)}", name=name, arguments=text)


def _loads(text: str) -> Any:
    """The JSON value of a text, control characters in strings allowed; None if it is none."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def _ends_in_string(text: str) -> bool:
    """Whether JSON text breaks off inside a string."""
    try:
        json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return False
    return False


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at
