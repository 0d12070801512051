"""A GGUF file, ready to serve."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.engine.llamacpp.engine import LlamaEngine
from aios_kernel.engine.llamacpp.model import LlamaModel
from aios_kernel.errors import AiosError, ConfigError, UnknownModel

_log = logging.getLogger(__name__)
_KINDS = {
    "auto": "F16", "float16": "F16", "fp16": "F16", "float32": "F32", "fp32": "F32", "bfloat16": "BF16", "bf16": "BF16",
}  # fmt: skip
_NUMBERS = {"F32": (0, 4), "F16": (1, 2), "BF16": (30, 2)}
"""Of `GGML_TYPE_...`, and their bytes."""
_CAP_BYTES = 2 << 30
_SHARE = 0.5
"""The pool takes at most so much, and that share of the free memory, unless `kv_tokens` asks for more."""
_MOST_TOKENS = 1 << 18
_LEAST_TOKENS = 16


def llamacpp_model(
    path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    kv_tokens: int | None = None,
    threads: int | None = None,
    loras: Mapping[str, str] | None = None,
) -> LoadedModel:
    """Load a GGUF file.

    Args:
        path: of the file. A `tokenizer.json` beside it is used in place of the file's own tokenizer and template.
        device: `auto` (a GPU takes all layers if this build of llama.cpp knows one), `cpu` or `cuda`.
        dtype: of keys and values: `auto` and `float16`, `float32` or `bfloat16`; the weights' is the file's.
        kv_tokens: size of the KV pool in tokens; None: from the free memory.
        threads: of llama.cpp; None: its choice.
        loras: adapters by name, GGUF files or folders in PEFT's format.

    Raises:
        UnknownModel: there is no such file.
        ConfigError: llama-cpp-python is missing or another version, the file is damaged, or a setting is impossible.
        Unsupported: the model is of a kind that is not served, or has no tokenizer.
    """
    began, file = time.monotonic(), Path(path).expanduser()
    if not file.is_file():
        raise UnknownModel(f"there is no file {file}", fix="aios serve --engine llamacpp --model FILE.gguf")
    kind, width = _kind(dtype)
    model = LlamaModel(file, _gpu_layers(device))
    try:
        pool = _pool(model, kv_tokens, width)
        engine = LlamaEngine(model, kv_tokens=pool, kind=kind, threads=threads or 0)
    except BaseException:
        model.close()
        raise
    try:
        for name, adapter in (loras or {}).items():
            engine.load_lora(name, adapter)
        codec = _codec(model, file)
    except BaseException:
        engine.close()
        raise
    _log.info(
        "loaded %s in %.1f s: KV pool of %s tokens, window %s tokens",
        file.name, time.monotonic() - began, f"{pool:,}", f"{codec.window:,}",
    )  # fmt: skip
    return LoadedModel(file.stem, engine, codec)


def _kind(dtype: str) -> tuple[int, int]:
    if dtype not in _KINDS:
        raise ConfigError(f'dtype is "{dtype}"', fix="use auto, float32, bfloat16 or float16")
    return _NUMBERS[_KINDS[dtype]]


def _gpu_layers(device: str) -> int:
    if device not in {"auto", "cpu", "cuda"}:
        raise ConfigError(f'device "{device}" is not served by llama.cpp', fix="use auto, cpu or cuda")
    return 0 if device == "cpu" else -1


def _pool(model: LlamaModel, kv_tokens: int | None, width: int) -> int:
    from aios_kernel.engine.torch.host_memory import available_bytes

    free, token_bytes = available_bytes(), model.kv_token_values * width
    if kv_tokens is None:
        kv_tokens = min(int(min(_CAP_BYTES, free * _SHARE) // token_bytes), _MOST_TOKENS)
    if kv_tokens < _LEAST_TOKENS or kv_tokens * token_bytes > free:
        raise ConfigError(
            f"a KV pool of {kv_tokens:,} tokens cannot be had: a token takes {token_bytes:,} bytes, "
            f"{free >> 20:,} MiB are free",
            fix=f"set kv_tokens between {_LEAST_TOKENS} and {free // token_bytes:,}",
        )
    return kv_tokens


def _codec(model: LlamaModel, file: Path) -> Any:
    """By the tokenizer beside the file, else by that in it."""
    from aios_kernel.chat.codec import TransformersCodec
    from aios_kernel.engine.llamacpp.vocabulary import LlamaTokenizer, generation_settings

    if (file.parent / "tokenizer.json").is_file():
        return TransformersCodec(*_beside(file.parent), window=model.window, width=model.vocab)
    tokenizer = LlamaTokenizer(model)
    settings = generation_settings(tokenizer, model)
    return TransformersCodec(tokenizer, settings, window=model.window, width=model.vocab, token_bytes=tokenizer.bytes)


def _beside(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, GenerationConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        has_settings = (folder / "generation_config.json").is_file()
        settings = GenerationConfig.from_pretrained(folder) if has_settings else GenerationConfig()
    except AiosError:
        raise
    except Exception as error:  # tokenizers and transformers raise whatever a damaged file leads to
        raise ConfigError(
            f"the tokenizer beside the GGUF file cannot be loaded: {error}",
            fix=f"mend or remove {folder / 'tokenizer.json'}; the file has one of its own",
        ) from error
    return tokenizer, settings
