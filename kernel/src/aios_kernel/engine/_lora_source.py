"""Where a LoRA adapter is: a folder, or a Hugging Face id, of which only configuration and safetensors are taken."""

from __future__ import annotations

from pathlib import Path

from aios_kernel.engine._source import HUB_ID, download
from aios_kernel.errors import ConfigError, UnknownModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def locate_lora(spec: str) -> Path:
    """Find an adapter's folder.

    Raises:
        UnknownModel: there is no such folder or id, or it cannot be downloaded.
        ConfigError: it has no safetensors weights.
    """
    folder = _folder(spec)
    if not (folder / WEIGHTS).is_file():
        others = sorted(path.name for path in folder.glob("adapter_model.*"))
        instead = f" but {', '.join(others)} (other formats can run code and are not loaded)" if others else ""
        raise ConfigError(
            f"the adapter {spec} has no {WEIGHTS}{instead}",
            fix="save it with PEFT's save_pretrained(folder), which writes safetensors",
        )
    return folder


def _folder(spec: str) -> Path:
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return folder
    if spec.startswith((".", "~", "/")) or folder.exists() or not HUB_ID.fullmatch(spec):
        raise UnknownModel(f"there is no folder {folder} with a LoRA adapter", fix="check the path: --lora NAME=PATH")
    return download(spec, None, [CONFIG, WEIGHTS])
