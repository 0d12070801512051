"""What a tool-call format is able to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from aios_kernel.chat.protocol import TextPiece
from aios_kernel.syscalls import ToolCall, ToolSpec

Structure: TypeAlias = dict[str, Any]
"""A part of an xgrammar structural tag, as its JSON."""


class ToolCallParser(Protocol):
    """Takes the tool calls out of a model's text as it streams in.

    Text that may become a call is held back; what is not a well-formed call stays text, every character of it; and the
    result does not depend on how the text was cut into pieces.
    """

    def push(self, text: str) -> TextPiece:
        """Take the next text and give what is certain."""
        ...

    def finish(self) -> TextPiece:
        """Decide on what was held back; nothing follows."""
        ...


class ToolFormat(Protocol):
    """A model's tool-call format."""

    @property
    def native(self) -> bool:
        """Whether the chat template itself tells the model of its tools; else a system message has to."""
        ...

    @property
    def markers(self) -> tuple[str, ...]:
        """Special tokens that a parser must get to see."""
        ...

    def parser(self) -> ToolCallParser:
        """A fresh parser."""
        ...

    def calls(self, tools: Sequence[ToolSpec], *, many: bool) -> Structure:
        """An answer that is nothing but one call of these tools, or with `many` one or more."""
        ...

    def among_text(self, tools: Sequence[ToolSpec], *, many: bool) -> Structure | None:
        """Text in which calls may stand; None: this format's calls cannot be told from text before they are over."""
        ...

    def write(self, call: ToolCall) -> str:
        """A call as the model would have written it."""
        ...

    def call_id(self, call_id: str) -> str:
        """A call's id as the chat template wants it."""
        ...
