"""`adapter_config.json` of PEFT: what of it matters here, and what cannot be served."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from aios_kernel.errors import ConfigError, Unsupported

CONFIG = "adapter_config.json"
_MERGE = "merge it into its model (PEFT's merge_and_unload) and serve that: aios serve PATH"
_REFUSED = {
    "use_dora": "weight-decomposed adapters (DoRA)",
    "lora_bias": "adapters with biases",
    "modules_to_save": "whole layers beside the adapter (modules_to_save)",
    "fan_in_fan_out": "transposed layers (fan_in_fan_out)",
    "layer_replication": "repeated layers (layer_replication)",
    "target_parameters": "adapters of parameters that are no layers (target_parameters)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "alora_invocation_tokens": "activated adapters (aLoRA)",
    "use_qalora": "group-wise adapters (QALoRA)",
    "use_bdlora": "block-diagonal adapters (BD-LoRA)",
    "arrow_config": "routed adapters (Arrow)",
}
"""Fields that mean something else than `x A^T B^T` added to a layer's result when they are set."""
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
"""Initialisations that leave the model's own weights as they are; the others (PiSSA, OLoRA, ...) change them."""
_MOST_PATTERN = 200
_REPEATED_GROUP = re.compile(r"\)\s*[*+?{]")
"""A pattern of this form can take for ever to be matched."""


class LoraConfig(msgspec.Struct, frozen=True):
    """Ranks and scales. `rank_pattern` and `alpha_pattern` say so for layers whose names they match."""

    peft_type: str = ""
    r: int = 8
    lora_alpha: float = 8.0
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None

    def rank(self, layer: str) -> int:
        """Of the adapter of a layer, by its name in the model."""
        return _matching(self.rank_pattern, layer, self.r)

    def scale(self, layer: str) -> float:
        """What the adapter's product is multiplied by: alpha / r, or alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023)."""
        rank, alpha = self.rank(layer), _matching(self.alpha_pattern, layer, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_config(folder: Path) -> LoraConfig:
    """Read an adapter's configuration.

    Raises:
        ConfigError: it is missing or wrong.
        Unsupported: the adapter is of another kind than plain LoRA on linear layers.
    """
    path = folder / CONFIG
    try:
        raw = msgspec.json.decode(path.read_bytes())
        config = msgspec.convert(raw, LoraConfig)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} holds no {CONFIG}, so it is no adapter of PEFT",
            fix="pass the folder that the adapter's save_pretrained wrote",
        ) from error
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", fix="save or download the adapter again") from error
    _refuse_other_kinds(folder, config, cast("dict[str, Any]", raw))
    patterns = [*(config.rank_pattern or {}), *(config.alpha_pattern or {})]
    _check_patterns(path, patterns)
    if min([config.r, *(config.rank_pattern or {}).values()]) < 1:
        raise ConfigError(f"{path} has a rank below 1", fix="save or download the adapter again")
    return config


def _refuse_other_kinds(folder: Path, config: LoraConfig, raw: Mapping[str, Any]) -> None:
    if config.peft_type.upper() != "LORA":
        raise _unsupported(folder, f'adapters of the kind "{config.peft_type}"')
    for field, what in _REFUSED.items():
        if raw.get(field):
            raise _unsupported(folder, what)
    if raw.get("bias") not in (None, "none"):
        raise _unsupported(folder, f'trained biases (bias = "{raw["bias"]}")')
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        raise _unsupported(folder, f"the task {raw['task_type']}")
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        raise _unsupported(folder, f'adapters that change the model\'s own weights (init_lora_weights = "{start}")')


def _unsupported(folder: Path, what: str) -> Unsupported:
    return Unsupported(f"the adapter {folder} needs {what}, which the torch engine does not serve", fix=_MERGE)


def _check_patterns(path: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        if len(pattern) > _MOST_PATTERN or _REPEATED_GROUP.search(pattern):
            raise Unsupported(f"{path} has a pattern that may take for ever: {pattern[:80]!r}", fix=_MERGE)
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{path} has a wrong pattern, {pattern!r}: {error}", fix="save it again") from error


def _matching(pattern: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """The value of the first key that the layer's name ends with, as a regular expression behind a dot; PEFT's rule."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", layer)), default)
