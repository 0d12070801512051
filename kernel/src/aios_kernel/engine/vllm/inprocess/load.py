"""A model on vLLM in process, ready to serve."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.engine.vllm.inprocess.hooks import check
from aios_kernel.errors import ConfigError

_log = logging.getLogger(__name__)
_CPU_BLOCK = 32
"""Its CPU attention wants multiples of this."""
_CPU_KV_BYTES = 2 << 30


def vllm_inprocess_model(
    model: str,
    *,
    dtype: str = "auto",
    kv_tokens: int | None = None,
    loras: Mapping[str, str] | None = None,
    args: Sequence[str] = (),
) -> LoadedModel:
    """Load a model onto vLLM in this process. One GPU, or the CPU; there can be only one such model.

    Args:
        model: a folder or a Hugging Face id.
        dtype: of weights and KV; `auto`: float32 on the CPU build, the checkpoint's own else.
        kv_tokens: size of the KV pool; None: what vLLM takes.
        loras: folders of adapters in PEFT format, by name; no others can be loaded later.
        args: further arguments, as `vllm serve` takes them.

    Raises:
        ConfigError: vLLM is not there in the version that is tested, or refuses the model.
        Unsupported: the tokenizer cannot be used.
    """
    check()
    from transformers import AutoTokenizer, GenerationConfig

    from aios_kernel.chat.codec import TransformersCodec
    from aios_kernel.engine.vllm.inprocess.core import VllmCore
    from aios_kernel.engine.vllm.inprocess.engine import VllmStepEngine

    began = time.monotonic()
    options = _arguments(dtype, _parsed(args))
    block = int(options.get("block_size") or 16)
    core = VllmCore(model, None if kv_tokens is None else max(1, kv_tokens // block), options, len(loras or {}))
    try:
        engine = VllmStepEngine(core, model)
        for adapter, source in (loras or {}).items():
            engine.load_lora(adapter, source)
        try:
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            has_settings = not Path(model).is_dir() or (Path(model) / "generation_config.json").is_file()
            settings = GenerationConfig.from_pretrained(model) if has_settings else GenerationConfig()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{model} has no tokenizer that transformers can load: {error}") from error
        codec = TransformersCodec(tokenizer, settings, window=core.window, width=core.vocab)
    except BaseException:
        core.close()
        raise
    name = Path(model).name if Path(model).is_dir() else model
    _log.info("vLLM has loaded %s in %.1f s", name, time.monotonic() - began)
    return LoadedModel(name, engine, codec)


def _parsed(args: Sequence[str]) -> dict[str, Any]:
    """What a list of arguments sets. Raises ConfigError."""
    from vllm.engine.arg_utils import EngineArgs  # pyright: ignore[reportMissingImports]
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # pyright: ignore[reportMissingImports]

    if not args:
        return {}
    parser: Any = EngineArgs.add_cli_args(FlexibleArgumentParser())
    try:
        given, plain = (EngineArgs.from_cli_args(parser.parse_args(each)) for each in ([*args], []))
    except SystemExit as error:
        raise ConfigError(f"vLLM does not know what args in [vllm] say: {' '.join(args)}") from error
    names = [field.name for field in dataclasses.fields(given)]
    return {name: getattr(given, name) for name in names if getattr(given, name) != getattr(plain, name)}


def _arguments(dtype: str, given: Mapping[str, Any]) -> dict[str, Any]:
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    options: dict[str, Any] = {"dtype": dtype}
    if current_platform.is_cpu():
        # Stated, since vLLM would take nine tenths of the memory, and not start where others use more than the rest.
        options = {
            "dtype": "float32" if dtype == "auto" else dtype,
            "block_size": _CPU_BLOCK,
            "kv_cache_memory_bytes": _CPU_KV_BYTES,
        }
    return {**options, **given}
