"""Tokenizers of the common kinds, with templates of the common tool-call formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from aios_kernel.chat.codec import TransformersCodec

SPECIAL = ("<|start|>", "<|end|>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>")
PLAIN = ("<tool_call>", "</tool_call>", '"arguments": ', "tool")

_TURNS = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.get('tool_calls', []) %}CALL{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"
TEMPLATES = {
    "hermes": _TOOLS
    + _TURNS.replace(
        "CALL",
        "\n<tool_call>\n{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}\n</tool_call>",
    ),
    "llama": _TOOLS + "{% for m in messages %}{% if m.get('tool_calls', []) | length > 1 %}"
    "{{ raise_exception('one tool call at a time') }}{% endif %}{% endfor %}"
    + _TURNS.replace("CALL", "{{ {'name': c.function.name, \"parameters\": c.function.arguments} | tojson }}"),
    "mistral": _TOOLS + "{% for m in messages %}{% for c in m.get('tool_calls', []) %}{% if c.id | length != 9 %}"
    "{{ raise_exception('ids have nine characters') }}{% endif %}{% endfor %}{% endfor %}"
    + _TURNS.replace(
        "CALL", "[TOOL_CALLS] {{ [{'name': c.function.name, 'arguments': c.function.arguments}] | tojson }}"
    ),
    "mistral_args": _TOOLS
    + _TURNS.replace("CALL", "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"),
    "no_tools": _TURNS.replace("CALL", ""),
}


def _byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ã", "©")]
    pieces = [*alphabet, *(a + b for a, b in merges)]
    raw = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return raw


def _byte_fallback() -> Tokenizer:
    letters = [chr(code) for code in range(33, 127)] + ["▁", "é"]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁t", "▁th"]
    merges = [("▁", "t"), ("▁t", "h")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return raw


KINDS = {"byte_level": _byte_level, "byte_fallback": _byte_fallback}


def build_tokenizer(kind: str = "byte_level", template: str | None = "hermes") -> Any:
    raw = KINDS[kind]()
    raw.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    raw.add_tokens([AddedToken(text, special=False, normalized=False) for text in PLAIN])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = TEMPLATES[template] if template else None
    return tokenizer


def build_codec(kind: str = "byte_level", template: str | None = "hermes", **generation: Any) -> TransformersCodec:
    tokenizer = build_tokenizer(kind, template)
    width = -(-len(tokenizer) // 64) * 64  # wider than the vocabulary, as real heads are
    return TransformersCodec(tokenizer, GenerationConfig(**generation), window=4096, width=width)


@pytest.fixture(scope="session")
def codecs() -> Callable[..., TransformersCodec]:
    known: dict[tuple[str, str | None], TransformersCodec] = {}

    def codec(kind: str = "byte_level", template: str | None = "hermes") -> TransformersCodec:
        if (kind, template) not in known:
            known[kind, template] = build_codec(kind, template)
        return known[kind, template]

    return codec


@pytest.fixture
def make_codec() -> Callable[..., TransformersCodec]:
    return build_codec


@pytest.fixture(scope="session")
def session_tokenizer() -> Callable[..., Any]:
    return build_tokenizer


@pytest.fixture
def make_tokenizer() -> Callable[..., Any]:
    return build_tokenizer
