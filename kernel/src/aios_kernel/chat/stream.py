"""One answer: tokens in, text and tool calls out."""

from __future__ import annotations

from collections.abc import Sequence

from aios_kernel.chat.detokenizer import Detokenizer
from aios_kernel.chat.formats import ToolCallParser
from aios_kernel.chat.protocol import TextPiece


class TokenStream:
    """See `aios_kernel.chat.protocol.TextStream`.

    Args:
        detokenizer: of this answer.
        parser: takes the tool calls out; None: everything is text.
        many: several calls may be made; else only the first one is told.
    """

    def __init__(self, detokenizer: Detokenizer, parser: ToolCallParser | None = None, *, many: bool = True) -> None:
        self._detokenizer = detokenizer
        self._parser = parser
        self._many = many
        self._called = False

    def push(self, token: int) -> TextPiece:
        """Take one token (never an end token) and give what can be shown."""
        return self._shown(self._detokenizer.push(token))

    def push_all(self, tokens: Sequence[int]) -> TextPiece:
        """See `TextStream.push_all`."""
        return self._shown(self._detokenizer.push_all(tokens))

    def finish(self) -> TextPiece:
        """Give what was held back."""
        text = self._detokenizer.finish()
        if self._parser is None:
            return TextPiece(text)
        piece, last = self._told(self._parser.push(text)), self._told(self._parser.finish())
        return TextPiece(piece.text + last.text, piece.tool_calls + last.tool_calls)

    def _shown(self, text: str) -> TextPiece:
        return self._told(self._parser.push(text)) if self._parser else TextPiece(text)

    def _told(self, piece: TextPiece) -> TextPiece:
        if self._many or not piece.tool_calls:
            return piece
        calls = () if self._called else piece.tool_calls[:1]
        self._called = True
        return TextPiece(piece.text, calls)
