"""MetaGPT without a key: its import needs `config2.yaml` with a model and a key, which the kernel makes needless.

No file is written. What MetaGPT reads from its last configuration file is completed in memory: a missing `llm` block
gets a placeholder, as does a key that was never filled in. Without a scope the placeholder is refused at the first
call, with MetaGPT's own words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aios_adapters._passthrough import passes_through
from aios_adapters.patching import Patcher

PLACEHOLDER = "sk-served-by-the-aios-kernel"
_NEVER_FILLED_IN = {"", None, "YOUR_API_KEY"}  # as in LLMConfig.check_llm_key


def install(patcher: Patcher) -> None:
    """Complete the configuration as it is read."""
    from metagpt.utils.yaml_model import YamlModel

    read = YamlModel.read_yaml.__func__

    def read_yaml(cls: type, file_path: Path, encoding: str = "utf-8") -> dict[str, Any]:
        """Read yaml file and return a dict."""
        values = read(cls, file_path, encoding)
        if cls.__name__ != "Config" or passes_through():
            return values
        return _completed(values, Path(file_path))

    patcher.replace(YamlModel, "read_yaml", classmethod(read_yaml))


def missing_key() -> ValueError:
    """What MetaGPT says about a key that was never filled in."""
    from metagpt.const import CONFIG_ROOT

    return ValueError(
        f"Please set your API key in {CONFIG_ROOT / 'config2.yaml'}, or run this inside a function decorated with "
        "@aios.agent"
    )


def _completed(values: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    """The file's values; the file that MetaGPT reads last gets the `llm` block that no file has."""
    from metagpt.const import CONFIG_ROOT, METAGPT_ROOT

    values = dict(values or {})
    llm = values.get("llm")
    if isinstance(llm, dict):
        if llm.get("api_key", PLACEHOLDER) in _NEVER_FILLED_IN:
            values["llm"] = {**llm, "api_key": PLACEHOLDER}
    elif path == CONFIG_ROOT / "config2.yaml" and not _has_llm(METAGPT_ROOT / "config" / "config2.yaml"):
        values["llm"] = {"api_type": "openai", "model": "gpt-4o", "api_key": PLACEHOLDER}
    return values


def _has_llm(path: Path) -> bool:
    import yaml

    return path.exists() and isinstance((yaml.safe_load(path.read_text("utf-8")) or {}).get("llm"), dict)
