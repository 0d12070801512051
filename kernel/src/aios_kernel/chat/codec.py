"""The codec of a transformers model: its template, its tokens, its tool calls, its grammars."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from aios_kernel.chat.checks import check_chat
from aios_kernel.chat.detokenizer import Detokenizer, TokenBytes
from aios_kernel.chat.formats import detect
from aios_kernel.chat.grammar_compiler import GrammarCompiler
from aios_kernel.chat.protocol import TextStream
from aios_kernel.chat.stream import TokenStream
from aios_kernel.chat.template import GENERIC_TEMPLATE, ChatTemplate
from aios_kernel.engine.protocol import Grammar, SamplingParams
from aios_kernel.errors import ConfigError, InvalidRequest
from aios_kernel.syscalls import LlmChat

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|END_OF_TURN_TOKEN|>")
"""Tokens that end a turn in common templates; some models' generation settings forget them."""


class TransformersCodec:
    """See `aios_kernel.chat.protocol.Codec`.

    Args:
        tokenizer: a transformers tokenizer. Without a chat template it gets `GENERIC_TEMPLATE`.
        generation_config: the model's own generation settings.
        window: longest sequence in tokens.
        width: of the model's logits.
        token_bytes: what the tokens stand for; None: worked out from the tokenizer's vocabulary.

    Raises:
        ConfigError: the model has no end token.
        Unsupported: the tokenizer does not decode token by token.
    """

    def __init__(
        self, tokenizer: Any, generation_config: Any, *, window: int, width: int, token_bytes: TokenBytes | None = None
    ) -> None:
        if not tokenizer.chat_template:
            tokenizer.chat_template = GENERIC_TEMPLATE
        template = _template_text(tokenizer.chat_template)
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        tool_format = detect(template, vocabulary)
        self._tokenizer = tokenizer
        self._fast = _fast(tokenizer)
        self._lock = threading.Lock()
        self.window = window
        self.end_tokens = _end_tokens(tokenizer, generation_config, template, vocabulary)
        self.defaults = _defaults(generation_config)
        self._bytes = token_bytes or _token_bytes(tokenizer, sorted(self.end_tokens))
        self._markers = frozenset(vocabulary[marker] for marker in tool_format.markers if marker in vocabulary)
        self._format = tool_format
        self._template = ChatTemplate(tokenizer, tool_format)
        hidden = self._bytes.special - self._markers
        visible = [b"" if token in hidden else self._bytes.of(token) for token in range(width)]
        self._grammars = GrammarCompiler(visible, width, self.end_tokens, tool_format)

    def encode_chat(self, call: LlmChat) -> list[int]:
        """See `Codec.encode_chat`."""
        check_chat(call)
        tokens = self.encode(self._template.render(call))
        if not tokens:
            raise InvalidRequest("the prompt is empty", fix="send a message with some content")
        return tokens

    def encode(self, text: str) -> list[int]:
        """See `Codec.encode`. Names of special tokens in the text become these tokens."""
        if self._fast is not None:
            return list(self._fast.encode(text, add_special_tokens=False).ids)
        with self._lock:
            return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Codec.decode`."""
        return self._bytes.text(tokens)

    def stream(self, call: LlmChat) -> TextStream:
        """See `Codec.stream`."""
        if not call.tools or call.tool_choice == "none":
            return TokenStream(Detokenizer(self._bytes))
        shown = Detokenizer(self._bytes, self._markers)
        return TokenStream(shown, self._format.parser(), many=call.parallel_tool_calls)

    def grammar(self, call: LlmChat) -> Grammar | None:
        """See `Codec.grammar`."""
        check_chat(call)
        return self._grammars.grammar(call)

    def load_grammar(self, dump: str) -> Grammar:
        """See `Codec.load_grammar`."""
        return self._grammars.load(dump)


def _token_bytes(tokenizer: Any, ends: list[int]) -> TokenBytes:
    import xgrammar

    return TokenBytes(tokenizer, xgrammar.TokenizerInfo.from_huggingface(tokenizer, stop_token_ids=ends))


def _template_text(template: Any) -> str:
    """The template's source; a tokenizer may have several by name, of which `tool_use` and `default` matter."""
    return template if isinstance(template, str) else "\n".join(str(text) for text in template.values())


def _fast(tokenizer: Any) -> Any:
    """The Rust tokenizer below, which is safe to use from many threads once truncation and padding are off."""
    if not tokenizer.is_fast:
        return None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


def _end_tokens(tokenizer: Any, config: Any, template: str, vocabulary: dict[str, int]) -> frozenset[int]:
    ends = {vocabulary[end] for end in _TURN_ENDS if end in template and end in vocabulary}
    for found in (config.eos_token_id, tokenizer.eos_token_id):
        if found is not None:
            ends |= {found} if isinstance(found, int) else set(found)
    if not ends:
        raise ConfigError(
            "the model names no end token",
            fix="set eos_token_id in its generation_config.json, or choose another model",
        )
    return frozenset(ends)


def _defaults(config: Any) -> SamplingParams:
    """The model's own sampling; greedy unless its generation settings say `do_sample`."""
    penalty = float(config.repetition_penalty or 1.0)
    if not config.do_sample:
        return SamplingParams(repetition_penalty=penalty)
    return SamplingParams(
        temperature=float(1.0 if config.temperature is None else config.temperature),
        top_p=float(1.0 if config.top_p is None else config.top_p),
        top_k=int(0 if config.top_k is None else config.top_k),
        min_p=float(config.min_p or 0.0),
        repetition_penalty=penalty,
    )
