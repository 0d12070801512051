"""How vLLM's server is started for a model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from aios_kernel.engine._lora_source import CONFIG
from aios_kernel.engine.settings import VllmSettings
from aios_kernel.errors import ConfigError

_LAUNCH = Path(__file__).parent / "launch.py"
_PARSERS = {"hermes": "hermes", "llama": "llama3_json", "mistral": "mistral"}
"""Names of vLLM's parsers for our formats'."""
_OURS = (
    "--model",
    "--host",
    "--port",
    "--served-model-name",
    "--scheduling-policy",
    "--tensor-parallel-size",
    "--api-key",
    "--enable-lora",
    "--lora-modules",
)
"""What the kernel sets itself."""
_RANK, _RANKS = "--max-lora-rank", (1, 8, 16, 32, 64, 128, 256, 320, 512)
_STRUCTURED, _COMPACT = "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'
"""Else a small model may write blanks between two words of JSON until its limit."""


def command(
    model: str, name: str, port: int, settings: VllmSettings, loras: Mapping[str, Path] | None = None
) -> list[str]:
    """The command. It listens on loopback only, and takes the key from its environment.

    Raises ConfigError: the interpreter is not there, an argument is one that the kernel sets, or an adapter is wrong.
    """
    python = settings.python or sys.executable
    if not Path(python).is_file():
        raise ConfigError(f"there is no interpreter {python}", fix="set python in [vllm] of aios.toml")
    taken = next((arg for arg in settings.args if arg.partition("=")[0] in _OURS), None)
    if taken is not None:
        raise ConfigError(f"{taken} of vLLM's server is set by the kernel", fix="leave it out of args in [vllm]")
    structured = [] if any(arg.startswith(_STRUCTURED) for arg in settings.args) else [_STRUCTURED, _COMPACT]
    return [
        python, "-P", str(_LAUNCH), "--model", model, "--served-model-name", name,
        "--host", "127.0.0.1", "--port", str(port),
        "--tensor-parallel-size", str(settings.tensor_parallel),
        "--scheduling-policy", "priority", "--enable-prompt-tokens-details",
        "--enable-auto-tool-choice", "--tool-call-parser", settings.tool_parser or _parser_of(Path(model)),
        *structured, *_adapters(loras or {}, settings.args), *settings.args,
    ]  # fmt: skip


def environment(key: str) -> dict[str, str]:
    """Of the server: the kernel's own, with what keeps vLLM quiet and its CPU build as fast as it was measured."""
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB; else nine tenths of the memory, whoever has it
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else it binds itself to cores that others may use
        "VLLM_USE_AOT_COMPILE": "0",  # what the CPU build saves ahead of time does not load again
    }
    return {**defaults, **os.environ, "VLLM_API_KEY": key}


def _adapters(loras: Mapping[str, Path], args: Sequence[str]) -> list[str]:
    if not loras:
        return []
    rank = [] if any(arg.startswith(_RANK) for arg in args) else [_RANK, str(_room(max(map(_rank_of, loras.values()))))]
    named = [json.dumps({"name": name, "path": str(folder)}) for name, folder in loras.items()]
    return ["--enable-lora", *rank, "--lora-modules", *named]


def _rank_of(folder: Path) -> int:
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return max(int(told["r"]), *map(int, (told.get("rank_pattern") or {"": 0}).values()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / CONFIG} tells no rank: {error}", fix="save the adapter with PEFT's save_pretrained(folder)"
        ) from error


def _room(rank: int) -> int:
    """The least of the ranks that vLLM can make room for."""
    return next((room for room in _RANKS if room >= rank), rank)


def _parser_of(folder: Path) -> str:
    """The parser for the chat template of a model on disk."""
    template = _template_of(folder)
    if "[TOOL_CALLS]" in template:
        return _PARSERS["mistral"]
    if "<|python_tag|>" in template or "<|start_header_id|>" in template:
        return _PARSERS["llama"]
    return _PARSERS["hermes"]


def _template_of(folder: Path) -> str:
    alone, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        if alone.is_file():
            return alone.read_text(encoding="utf-8")
        return str(json.loads(settings.read_text(encoding="utf-8")).get("chat_template", ""))
    except (OSError, ValueError):
        return ""
