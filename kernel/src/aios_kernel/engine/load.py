"""A model by its name: the demo, a folder, or a Hugging Face id, loaded onto the torch engine with its codec."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.errors import ConfigError, UnknownModel, Unsupported

if TYPE_CHECKING:
    import torch

DEMO = Path(__file__).parent.parent / "models" / "demo"
"""Where the demo model is shipped."""

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16"}
_SHORT_ROPE = {"dynamic", "longrope"}
"""Rotary scalings that treat a whole batch differently once one sequence passes the original window."""


def load_model(
    spec: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    kv_tokens: int | None = None,
    threads: int | None = None,
    revision: str | None = None,
) -> LoadedModel:
    """Load a model and make it ready to serve.

    Args:
        spec: `demo`, a folder with `config.json` and safetensors, or a Hugging Face id, which is downloaded.
        device: `auto` (CUDA if there is a device), `cpu`, `cuda` or `cuda:N`.
        dtype: `auto` (float32 on the CPU, the checkpoint's own on CUDA), `float32`, `bfloat16` or `float16`.
        kv_tokens: size of the KV pool in tokens; None takes what the free memory allows.
        threads: CPU threads of torch, for the whole process; None leaves them.
        revision: of a Hugging Face id.

    Raises:
        UnknownModel: there is no such folder or id, or it cannot be downloaded.
        ConfigError: the folder is incomplete, or device, dtype or pool size are impossible here.
        Unsupported: the architecture cannot be served.
    """
    import torch

    from aios_kernel.chat.codec import TransformersCodec
    from aios_kernel.engine.torch import TorchEngine

    source, name = _locate(spec)
    target = _device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    config = _config(source, revision)
    model = _weights(source, config, target, _dtype(dtype, config, target), revision)
    tokenizer = _tokenizer(source, revision)
    engine = TorchEngine(model, name="torch", kv_tokens=kv_tokens)
    codec = TransformersCodec(
        tokenizer, model.generation_config, window=_window(config.get_text_config(), tokenizer), width=engine.vocab
    )
    return LoadedModel(name=name, engine=engine, codec=codec)


def _locate(spec: str) -> tuple[str, str]:
    """Where to load from and what to call it."""
    if spec == "demo":
        if not (DEMO / "config.json").is_file():
            raise UnknownModel(f"the demo model is not in {DEMO}", fix="install a complete aios-kernel")
        return str(DEMO), "demo"
    folder = Path(spec).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder), folder.resolve().name
    if folder.is_file():
        raise Unsupported(
            f"{folder} is a file; the torch engine loads folders with config.json and safetensors",
            fix=f"aios serve {folder.parent}, if that is the model's folder",
        )
    if spec.startswith((".", "~", "/")) or not _HUB_ID.fullmatch(spec):
        raise UnknownModel(f"there is no folder {folder}", fix="check the path; `aios serve demo` needs none")
    return spec, spec


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder} holds no config.json, so it is no transformers model",
            fix="pass the folder that save_pretrained wrote, or a snapshot of a Hugging Face repository",
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{folder} holds no safetensors weights (other formats can run code and are not loaded)",
            fix="convert them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)",
        )


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


def _dtype(dtype: str, config: Any, device: torch.device) -> torch.dtype:
    import torch

    if dtype != "auto":
        if dtype not in _DTYPES:
            raise ConfigError(f'dtype is "{dtype}"', fix="use auto, float32, bfloat16 or float16")
        return getattr(torch, _DTYPES[dtype])
    if device.type == "cpu":
        return torch.float32
    own = getattr(config.get_text_config(), "dtype", None)
    return own if isinstance(own, torch.dtype) and own != torch.float32 else torch.bfloat16


def _config(source: str, revision: str | None) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except OSError as error:
        raise _not_found(source, error) from error
    except ValueError as error:
        raise Unsupported(
            f"transformers does not know the architecture of {source}, or its code is outside transformers (which the "
            f"kernel never runs): {_first_line(error)}",
            fix="choose a model whose code is part of transformers",
        ) from error
    names = [str(name) for name in config.architectures or []]
    causal = not names or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    if not causal or config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Unsupported(
            f"{source} is no causal language model but {', '.join(names) or type(config).__name__}",
            fix="choose a model whose architecture ends in ForCausalLM",
        )
    return config


def _weights(source: str, config: Any, device: torch.device, dtype: torch.dtype, revision: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except OSError as error:
        raise _not_found(source, error) from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConfigError(
            f"the weights of {source} are incomplete: {len(missing)} tensors are missing, such as {missing[0]}",
            fix="download the model again",
        )
    return model.to(device)


def _tokenizer(source: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{source} has no tokenizer that transformers can load: {_first_line(error)}",
            fix="put tokenizer.json and tokenizer_config.json beside the weights",
        ) from error


def _window(config: Any, tokenizer: Any) -> int:
    """Longest sequence that the model computes exactly."""
    window = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _SHORT_ROPE:
        window = rope.get("original_max_position_embeddings") or window
    return int(min(window, 1 << 30))


def _not_found(source: str, error: OSError) -> UnknownModel:
    return UnknownModel(
        f'the model "{source}" cannot be loaded: {_first_line(error)}',
        fix="check the id; without a network pass the folder of a downloaded model: aios serve PATH",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
