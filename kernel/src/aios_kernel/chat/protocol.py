"""What turns chats into tokens and tokens into chats, for one loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from aios_kernel.engine.protocol import Engine, Grammar, SamplingParams
from aios_kernel.syscalls import FinishReason, LlmChat, ToolCall, Usage


class TextPiece(msgspec.Struct, frozen=True):
    """Text and complete tool calls that newly emitted tokens made visible."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    end: FinishReason | None = None
    """Why the answer ends here, from an engine that has its end tokens and its limit elsewhere."""
    usage: Usage | None = None
    """The same engine's count, in place of ours."""


class TextStream(Protocol):
    """Incremental detokeniser and tool-call parser of one answer; never splits a character or a tool-call marker."""

    def push(self, token: int) -> TextPiece:
        """Take one token (never an end token) and give what can be shown."""
        ...

    def push_all(self, tokens: Sequence[int]) -> TextPiece:
        """Take several tokens and give all that can be shown: what `push` gives one after the other, as one piece."""
        ...

    def finish(self) -> TextPiece:
        """Give what was held back."""
        ...


class Codec(Protocol):
    """Chat template, tokenizer, tool-call format and grammar compiler of a model. Thread-safe."""

    window: int
    """Longest sequence in tokens, prompt and answer together."""
    end_tokens: frozenset[int]
    defaults: SamplingParams
    """The model's own generation defaults."""

    def encode_chat(self, call: LlmChat) -> list[int]:
        """Render messages and tools, with the generation prompt. Raises InvalidRequest."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text, no special tokens added (forced decoding)."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens as they stand."""
        ...

    def stream(self, call: LlmChat) -> TextStream:
        """A fresh stream for the answer to this call; tool calls are parsed if the call offers tools."""
        ...

    def grammar(self, call: LlmChat) -> Grammar | None:
        """The grammar that the call demands, or None. Raises InvalidSchema. May take seconds: not for the engine."""
        ...

    def load_grammar(self, dump: str) -> Grammar:
        """The grammar that `Grammar.dump` wrote down, in the same state, for a snapshot that comes back from disk."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to serve: its name, its engine and its codec."""

    name: str
    engine: Engine[Any, Any]
    codec: Codec
