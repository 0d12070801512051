"""One answer: tokens in, text and tool calls out."""

from __future__ import annotations

from aios_kernel.chat.detokenizer import Detokenizer
from aios_kernel.chat.protocol import TextPiece
from aios_kernel.chat.tool_calls import ToolCallParser


class TokenStream:
    """See `aios_kernel.chat.protocol.TextStream`; without a parser everything is text."""

    def __init__(self, detokenizer: Detokenizer, parser: ToolCallParser | None) -> None:
        self._detokenizer = detokenizer
        self._parser = parser

    def push(self, token: int) -> TextPiece:
        """Take one token (never an end token) and give what can be shown."""
        text = self._detokenizer.push(token)
        return self._parser.push(text) if self._parser else TextPiece(text)

    def finish(self) -> TextPiece:
        """Give what was held back."""
        text = self._detokenizer.finish()
        if self._parser is None:
            return TextPiece(text)
        piece, last = self._parser.push(text), self._parser.finish()
        return TextPiece(piece.text + last.text, piece.tool_calls + last.tool_calls)
