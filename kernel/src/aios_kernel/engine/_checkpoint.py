"""What a checkpoint's folder must hold before anything is loaded from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from aios_kernel.errors import ConfigError, Unsupported

CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_OTHERS = {".bin", ".pt", ".pth", ".safetensors", ".gguf"}
_CONVERT = "convert them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
_AGAIN = "download or copy the model again"


def check_config(folder: Path) -> None:
    """Look at `config.json`.

    Raises:
        ConfigError: it is missing or no JSON object.
        Unsupported: the weights are quantised.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{folder} holds no config.json, so it is no transformers model",
            fix="pass the folder that save_pretrained wrote, or a snapshot of a Hugging Face repository",
        )
    config = _json(folder / CONFIG)
    for part in (config, config.get("text_config")):
        method = _quantisation(part) if isinstance(part, dict) else None
        if method is not None:
            raise Unsupported(
                f"{folder} is quantised ({method}); the torch engine computes with float weights",
                fix="serve the original model that it was quantised from, with dtype bfloat16 to save memory",
            )


def shards(folder: Path) -> list[str]:
    """Names of the files that should hold the weights, whether or not they are there.

    Raises:
        ConfigError: the index cannot be read, or names files that are no safetensors.
    """
    if (folder / _WEIGHTS).is_file() or not (folder / _INDEX).is_file():
        return [_WEIGHTS]
    places = _json(folder / _INDEX).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    for name in names:
        # Other formats can run code; a path could name a file outside of the folder.
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise ConfigError(f'{folder / _INDEX} names "{name}", which is no safetensors file of it', fix=_CONVERT)
    if not names:
        raise ConfigError(f"{folder / _INDEX} names no files", fix=_AGAIN)
    return names


def check_weights(folder: Path) -> None:
    """Open every file of the weights and read its header.

    Raises:
        ConfigError: a file is missing, damaged or in another format.
    """
    names = shards(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if len(missing) == len(names) == 1:
        raise ConfigError(f"{folder} holds no safetensors weights{_instead(folder)}", fix=_CONVERT)
    if missing:
        raise ConfigError(
            f"{folder} misses {len(missing)} of its {len(names)} files of weights, such as {missing[0]}", fix=_AGAIN
        )
    for name in names:
        _check_header(folder / name)


def _check_header(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is damaged: {error}", fix=_AGAIN) from error


def _instead(folder: Path) -> str:
    """What lies there instead of safetensors."""
    others = sorted(
        path.name for end in ("bin", "pt", "pth", "safetensors", "gguf") for path in folder.glob(f"*.{end}")
    )
    if not others:
        return ""
    return f" named {_WEIGHTS} but {', '.join(others[:3])} (other formats can run code and are not loaded)"


def _quantisation(config: dict[str, Any]) -> str | None:
    found = config.get("quantization_config") or config.get("compression_config")
    if not found:
        return None
    return str(found.get("quant_method", "method unknown")) if isinstance(found, dict) else "method unknown"


def _json(path: Path) -> dict[str, Any]:
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", fix=_AGAIN) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object", fix=_AGAIN)
    return cast("dict[str, Any]", value)
