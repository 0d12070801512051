"""The tokenizer and the chat template of a GGUF file, dressed as a transformers tokenizer for the codec."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

from aios_kernel.chat.detokenizer import TokenBytes
from aios_kernel.engine.llamacpp.model import LlamaModel
from aios_kernel.errors import Unsupported

_LONGEST_PIECE = 1 << 12


class LlamaTokenizer:
    """What `TransformersCodec` asks of a tokenizer, answered by llama.cpp.

    Raises Unsupported: the file has no tokenizer.
    """

    is_fast = False

    def __init__(self, model: LlamaModel) -> None:
        self._api, self._vocab, self._n = model.api, model.vocab_handle, model.vocab
        if self._api.llama_vocab_type(self._vocab) == self._api.LLAMA_VOCAB_TYPE_NONE:
            raise Unsupported(
                "the GGUF file has no tokenizer",
                fix="put tokenizer.json and tokenizer_config.json of the model beside the file",
            )
        self.bytes = LlamaBytes(self, model)
        self.eos_token_id = self._known(self._api.llama_vocab_eos(self._vocab))
        self.bos_token_id = self._known(self._api.llama_vocab_bos(self._vocab))
        self.chat_template = _templates(model)

    def get_vocab(self) -> dict[str, int]:
        """Tokens by their text."""
        texts = (self._api.llama_vocab_get_text(self._vocab, token) for token in range(self._n))
        return {text.decode(errors="replace"): token for token, text in enumerate(texts) if text}

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Tokens of a text; names of special tokens in it become these tokens."""
        data = text.encode()
        room = len(data) + 8
        tokens = (ctypes.c_int32 * room)()
        n = self._api.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special_tokens, True)
        if n < 0:
            room = -n
            tokens = (ctypes.c_int32 * room)()
            n = self._api.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special_tokens, True)
        return list(tokens[:n])

    def apply_chat_template(
        self, messages: list[dict[str, Any]], *, tools: Any, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        """The chat as the template writes it, rendered in transformers' sandbox."""
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self.chat_template
        if isinstance(template, dict):
            template = template["tool_use" if tools else "default"]
        names: dict[str, Any] = {"bos_token": self._text(self.bos_token_id), "eos_token": self._text(self.eos_token_id)}
        rendered: Any = render_jinja_template(
            [messages], tools=tools, chat_template=template, add_generation_prompt=add_generation_prompt, **names
        )
        return str(rendered[0][0] if isinstance(rendered, tuple) else rendered[0])

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; of a special one its name."""
        buffer = ctypes.create_string_buffer(_LONGEST_PIECE)
        length = self._api.llama_token_to_piece(self._vocab, token, buffer, _LONGEST_PIECE, 0, True)
        return buffer.raw[: max(0, length)]

    def has(self, token: int, attributes: int) -> bool:
        """Whether a token has one of these attributes, `LLAMA_TOKEN_ATTR_...`."""
        return bool(self._api.llama_vocab_get_attr(self._vocab, token) & attributes)

    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        return [token for token in range(self._n) if self._api.llama_vocab_is_eog(self._vocab, token)]

    @staticmethod
    def _known(token: int) -> int | None:
        return None if token < 0 else int(token)

    def _text(self, token: int | None) -> str:
        return "" if token is None else self.piece(token).decode(errors="replace")


class LlamaBytes(TokenBytes):
    """See `TokenBytes`; llama.cpp tells the bytes itself."""

    def __init__(self, tokenizer: LlamaTokenizer, model: LlamaModel) -> None:
        api = model.api
        hidden = api.LLAMA_TOKEN_ATTR_CONTROL | api.LLAMA_TOKEN_ATTR_UNKNOWN | api.LLAMA_TOKEN_ATTR_UNUSED
        self._table = [tokenizer.piece(token) for token in range(model.vocab)]
        self.special = frozenset(token for token in range(model.vocab) if tokenizer.has(token, hidden))
        spm = api.llama_vocab_type(model.vocab_handle) == api.LLAMA_VOCAB_TYPE_SPM
        self.strips_space = spm and model.value("tokenizer.ggml.add_space_prefix") != "false"


def generation_settings(tokenizer: LlamaTokenizer, model: LlamaModel) -> Any:
    """The model's own sampling, as far as the file tells it, with the names of a transformers `GenerationConfig`."""

    def number(key: str) -> float | None:
        text = model.value(f"general.sampling.{key}")
        return float(text) if text else None

    temperature = number("temp")
    return SimpleNamespace(
        eos_token_id=tokenizer.ends() or None,
        do_sample=temperature is not None,
        temperature=temperature,
        top_p=number("top_p"),
        top_k=number("top_k"),
        min_p=number("min_p"),
        repetition_penalty=number("penalty_repeat"),
    )


def _templates(model: LlamaModel) -> str | dict[str, str] | None:
    """The chat template of the file; two by name when it has one of its own for tools."""
    names: dict[str, bytes | None] = {"default": None, "tool_use": b"tool_use"}
    found = {name: model.api.llama_model_chat_template(model.handle, key) for name, key in names.items()}
    texts = {name: text.decode(errors="replace") for name, text in found.items() if text}
    return texts.get("default") if len(texts) < 2 else texts
