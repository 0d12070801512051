"""What the parsers share: collecting what is certain, and looking for markers that may be cut."""

from __future__ import annotations

from collections.abc import Sequence

from aios_kernel.chat.protocol import TextPiece
from aios_kernel.syscalls import ToolCall


class Pieces:
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

    def calls(self, calls: Sequence[ToolCall]) -> None:
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


def overlap(text: str, marker: str) -> int:
    """Length of the longest proper start of `marker` that `text` ends with."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0
