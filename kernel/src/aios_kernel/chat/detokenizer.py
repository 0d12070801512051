"""Tokens to text, one at a time, never splitting a character."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aios_kernel.chat.utf8 import Utf8Decoder, decode
from aios_kernel.errors import Unsupported

_SAMPLE = 'Hello, wörld: "42" {}[]\n\t 你好 🙂 été'


class TokenBytes:
    """The bytes that every token stands for.

    Args:
        tokenizer: a transformers tokenizer.
        info: its xgrammar `TokenizerInfo`, which knows the vocabulary's encoding (byte level, byte fallback, raw).

    Raises:
        Unsupported: the tokenizer's text is not the sum of its tokens' bytes.
    """

    def __init__(self, tokenizer: Any, info: Any) -> None:
        self._table: list[bytes] = list(info.decoded_vocab)
        # The vocabulary's encoding does not hold for added tokens: they are spelled as they are.
        added: Mapping[int, Any] = tokenizer.added_tokens_decoder
        for token, entry in added.items():
            self._table.extend([b""] * (token + 1 - len(self._table)))
            self._table[token] = str(entry.content).encode()
        self.special = frozenset(token for token, entry in added.items() if entry.special)
        self.strips_space = self._strips_space(tokenizer)
        """Whether the tokenizer drops the space in front of a text's first word (SentencePiece)."""
        self._check(tokenizer)

    def of(self, token: int) -> bytes:
        """Bytes of one token; none for an id beyond the vocabulary (padding of the model's head)."""
        return self._table[token] if token < len(self._table) else b""

    def text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones included."""
        return decode(b"".join(self.of(token) for token in tokens))

    def _strips_space(self, tokenizer: Any) -> bool:
        spaced = next(
            (token for token, data in enumerate(self._table) if len(data) > 1 and data.startswith(b" ")), None
        )
        if spaced is None:
            return False
        return not str(tokenizer.decode([spaced], clean_up_tokenization_spaces=False)).startswith(" ")

    def _check(self, tokenizer: Any) -> None:
        ids: list[int] = tokenizer.encode(_SAMPLE, add_special_tokens=False)
        expected = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        text = self.text(ids)
        if (text.removeprefix(" ") if self.strips_space else text) != expected:
            raise Unsupported(
                f"the tokenizer {type(tokenizer).__name__} does not decode token by token",
                fix="choose a model with a byte-level or SentencePiece tokenizer",
            )


class Detokenizer:
    """Text of one answer. Special tokens are left out, but for those that `kept` names (tool-call markers)."""

    def __init__(self, table: TokenBytes, kept: frozenset[int] = frozenset()) -> None:
        self._bytes = table
        self._hidden = table.special - kept
        self._decoder = Utf8Decoder()
        self._at_start = table.strips_space

    def push(self, token: int) -> str:
        """The text that the token completes."""
        return "" if token in self._hidden else self._text(self._bytes.of(token))

    def push_all(self, tokens: Sequence[int]) -> str:
        """The text that the tokens complete."""
        hidden, of = self._hidden, self._bytes.of
        return self._text(b"".join([of(token) for token in tokens if token not in hidden]))

    def finish(self) -> str:
        """What is left of an incomplete character: U+FFFD, or nothing."""
        return self._decoder.finish()

    def _text(self, data: bytes) -> str:
        if self._at_start and data:
            self._at_start = False
            data = data.removeprefix(b" ")
        return self._decoder.push(data)
