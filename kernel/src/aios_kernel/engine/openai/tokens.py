"""Calls and pieces of answers, dressed as the tokens that scheduler and dispatcher deal in."""

from __future__ import annotations

from aios_kernel.syscalls import FinishReason, LlmChat, ToolCall, Usage

WINDOW = 1 << 20
"""Tokens of the longest sequence, by our estimate: the server itself refuses what is too long for its model."""
_CHARACTERS_A_TOKEN = 4
"""A rule of thumb: the server alone knows."""


class Prompt(list[int]):
    """A call. Its length is an estimate of its tokens, so that policies have something to weigh; their values are 0."""

    def __init__(self, call: LlmChat) -> None:
        characters = sum(len(message.content) for message in call.messages)
        super().__init__([0] * (2 + characters // _CHARACTERS_A_TOKEN))
        self.call = call


class Piece(int):
    """What came of an answer since the last step, perhaps its end. Its value is 0."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    end: FinishReason | None = None
    usage: Usage | None = None

    @classmethod
    def of(
        cls,
        text: str = "",
        tool_calls: tuple[ToolCall, ...] = (),
        end: FinishReason | None = None,
        usage: Usage | None = None,
    ) -> Piece:
        """A piece of an answer."""
        piece = cls(0)
        piece.text, piece.tool_calls, piece.end, piece.usage = text, tool_calls, end, usage
        return piece

    def joined(self, later: Piece) -> Piece:
        """This piece and the one behind it, which alone can be the end."""
        return Piece.of(self.text + later.text, self.tool_calls + later.tool_calls, later.end, later.usage)
