"""A model by its name: the demo, a folder, or a Hugging Face id, loaded onto the torch engine with its codec."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.engine._progress import progress_bars
from aios_kernel.engine._source import DEMO, Source, locate
from aios_kernel.engine.expert_options import ExpertOptions
from aios_kernel.errors import ConfigError, Unsupported

if TYPE_CHECKING:
    import torch

__all__ = ["DEMO", "load_model"]

_log = logging.getLogger(__name__)
_DTYPES = {
    "float32": "float32", "fp32": "float32",
    "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float16": "float16", "fp16": "float16",
}  # fmt: skip
_SHORT_ROPE = {"dynamic", "longrope"}
"""Rotary scalings that treat a whole batch differently once one sequence passes the original window."""


def load_model(  # noqa: PLR0913 - what can be set
    spec: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    kv_tokens: int | None = None,
    threads: int | None = None,
    revision: str | None = None,
    compile: bool = False,
    experts: ExpertOptions | None = None,
) -> LoadedModel:
    """Load a model and make it ready to serve.

    Args:
        spec: `demo`, a folder with `config.json` and safetensors, or a Hugging Face id, which is downloaded unless the
            hub's cache has it.
        device: `auto` (CUDA if there is a device), `cpu`, `cuda` or `cuda:N`.
        dtype: `auto` (float32 on the CPU, the checkpoint's own on CUDA), `float32`, `bfloat16` or `float16`.
        kv_tokens: size of the KV pool in tokens; None takes what the free memory allows.
        threads: CPU threads of torch, for the whole process; None leaves them.
        revision: of a Hugging Face id: a branch, a tag or a commit.
        compile: fuse the model's small operations at the start, see `ModelRunner.compile`.
        experts: hold a mixture's experts in a cache and leave the others in the checkpoint's files; None: load all.

    Raises:
        UnknownModel: there is no such folder or id, or it cannot be downloaded.
        ConfigError: the model is incomplete or damaged, or device, dtype or pool size are impossible here.
        Unsupported: the architecture cannot be served, or the weights are quantised.
    """
    import torch

    from aios_kernel.chat.codec import TransformersCodec
    from aios_kernel.engine.torch import TorchEngine

    began = time.monotonic()
    target = _device(device)
    _check_dtype(dtype)
    with progress_bars():
        source = locate(spec, revision)
        if threads is not None:
            torch.set_num_threads(threads)
        config = _config(source)
        model = _weights(source, config, target, _dtype(dtype, config, target), experts)
    tokenizer = _tokenizer(source)
    parameters = model.num_parameters()  # the engine packs weights, which are no parameters any more then
    engine = TorchEngine(model, name="torch", kv_tokens=kv_tokens, compile=compile)
    engine.warm_up()
    codec = TransformersCodec(
        tokenizer, model.generation_config, window=_window(config.get_text_config(), tokenizer), width=engine.vocab
    )
    _log.info(
        "loaded %s in %.1f s: %s, %s parameters, %s on %s, window %s tokens",
        source.name,
        time.monotonic() - began,
        type(config).__name__.removesuffix("Config"),
        _short(parameters),
        str(model.dtype).removeprefix("torch."),
        target,
        f"{codec.window:,}",
    )
    return LoadedModel(name=source.name, engine=engine, codec=codec)


def _device(device: str) -> torch.device:
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f'device is "{device}"', fix="use auto, cpu, cuda or cuda:N") from error
    if target.type not in {"cpu", "cuda"}:
        raise ConfigError(f'device "{device}" is not served', fix="use auto, cpu, cuda or cuda:N")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f'device is "{device}", but torch sees {torch.cuda.device_count()} CUDA devices',
            fix="use --device cpu, or install a CUDA build of torch",
        )
    return target


def _check_dtype(dtype: str) -> None:
    if dtype != "auto" and dtype not in _DTYPES:
        raise ConfigError(f'dtype is "{dtype}"', fix="use auto, float32, bfloat16 or float16")


def _dtype(dtype: str, config: Any, device: torch.device) -> torch.dtype:
    import torch

    if dtype != "auto":
        return getattr(torch, _DTYPES[dtype])
    if device.type == "cpu":
        return torch.float32
    own = getattr(config.get_text_config(), "dtype", None)
    return own if isinstance(own, torch.dtype) and own != torch.float32 else torch.bfloat16


def _config(source: Source) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    except Exception as error:  # transformers checks fields with errors of several kinds
        raise Unsupported(
            f"transformers cannot read the configuration of {source.name}: it does not know the architecture, or its "
            f"code is outside transformers (which the kernel never runs): {_first_line(error)}",
            fix="choose a model whose code is part of transformers",
        ) from error
    names = [str(name) for name in config.architectures or []]
    causal = not names or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    if not causal or config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "an encoder-decoder" if config.is_encoder_decoder else "no causal language model"
        raise Unsupported(
            f"{source.name} is {kind}: {', '.join(names) or type(config).__name__}",
            fix="choose a decoder-only model, whose architecture ends in ForCausalLM",
        )
    return config


def _weights(
    source: Source, config: Any, device: torch.device, dtype: torch.dtype, experts: ExpertOptions | None
) -> Any:
    from aios_kernel.engine.torch.experts.loading import connect

    try:
        loaded: Any = _class(config, experts).from_pretrained(
            source.folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the weights of {source.name} cannot be loaded: {_first_line(error)}",
            fix="check that config.json belongs to these weights, or download the model again",
        ) from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConfigError(
            f"the weights of {source.name} are incomplete: {len(missing)} tensors are missing, such as {missing[0]}",
            fix="download the model again",
        )
    model = _placed(model, device)
    if experts is not None:
        connect(model, source.folder, experts)
    return model


def _class(config: Any, experts: ExpertOptions | None) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from aios_kernel.engine.torch.experts.loading import class_without_experts

    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return AutoModelForCausalLM if experts is None else class_without_experts(kind)


def _placed(model: Any, device: torch.device) -> Any:
    import torch

    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the weights do not fit on {device}: {_first_line(error)}",
            fix="choose a smaller model, --dtype bfloat16 or --device cpu",
        ) from error


def _tokenizer(source: Source) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    except Exception as error:  # tokenizers and transformers raise whatever a damaged file leads to
        raise ConfigError(
            f"{source.name} has no tokenizer that transformers can load: {_first_line(error)}",
            fix="put tokenizer.json and tokenizer_config.json beside the weights",
        ) from error
    if not tokenizer.chat_template:
        _log.warning(
            "%s has no chat template: chats are rendered by a generic one (it may be a base model)", source.name
        )
    return tokenizer


def _window(config: Any, tokenizer: Any) -> int:
    """Longest sequence that the model computes exactly."""
    window = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _SHORT_ROPE:
        window = rope.get("original_max_position_embeddings") or window
    return int(min(window, 1 << 30))


def _short(n: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return str(n)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
