"""The codec half: calls go to the server as they are, answers come back as text and tool calls."""

from __future__ import annotations

from collections.abc import Sequence

from aios_kernel.chat.checks import check_chat
from aios_kernel.chat.protocol import TextPiece
from aios_kernel.engine.openai.tokens import WINDOW, Piece, Prompt
from aios_kernel.engine.protocol import Grammar, SamplingParams
from aios_kernel.errors import Unsupported
from aios_kernel.syscalls import LlmChat


class RemoteCodec:
    """See `aios_kernel.chat.protocol.Codec`; template, tokenizer and grammars are the server's."""

    window = WINDOW
    end_tokens: frozenset[int] = frozenset()
    defaults = SamplingParams()

    def encode_chat(self, call: LlmChat) -> list[int]:
        """The call itself. Raises InvalidRequest, or Unsupported for what cannot be asked of such a server."""
        check_chat(call)
        wanted = {
            "forced decoding": call.sampling.forced is not None,
            "log-probabilities": call.sampling.logprobs or call.sampling.prompt_logprobs is not None,
            "regex": call.regex is not None,
            "choice": bool(call.choice),
        }
        for what, is_wanted in wanted.items():
            if is_wanted:
                raise Unsupported(f"{what} cannot be asked of an OpenAI-compatible server here", fix="leave it out")
        return Prompt(call)

    def encode(self, text: str) -> list[int]:
        """Not offered: the tokenizer is the server's."""
        raise Unsupported("an OpenAI-compatible server does not tell its tokens", fix="send messages")

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of an answer's pieces."""
        return "".join(token.text for token in tokens if isinstance(token, Piece))

    def stream(self, call: LlmChat) -> RemoteStream:
        """A stream for one answer."""
        return RemoteStream()

    def grammar(self, call: LlmChat) -> Grammar | None:
        """None: the server holds the answer to the schema."""
        return None

    def load_grammar(self, dump: str) -> Grammar:
        """Not offered."""
        raise Unsupported("the openai engine has no grammars of its own")


class RemoteStream:
    """Pieces as the server sent them."""

    def push(self, token: int) -> TextPiece:
        """One piece. Raises ValueError for a token of another engine."""
        if not isinstance(token, Piece):
            raise ValueError("the token is not of the openai engine")
        return TextPiece(token.text, token.tool_calls, token.end, token.usage)

    def push_all(self, tokens: Sequence[int]) -> TextPiece:
        """Several; none of them may be the last."""
        pieces = [self.push(token) for token in tokens]
        calls = tuple(call for piece in pieces for call in piece.tool_calls)
        return TextPiece("".join([piece.text for piece in pieces]), calls)

    def finish(self) -> TextPiece:
        """Nothing is held back."""
        return TextPiece()
