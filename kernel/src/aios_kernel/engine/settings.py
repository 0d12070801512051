"""The tables of the configuration that are about single engines."""

from __future__ import annotations

from typing import Annotated

import msgspec


class VllmSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[vllm]`: how its server is started."""

    python: str = ""
    """The interpreter of the environment that vLLM is installed in; empty: the kernel's own."""
    tensor_parallel: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Over how many GPUs the weights are spread."""
    tool_parser: str = ""
    """How the model writes tool calls, in vLLM's names (`hermes`, `llama3_json`, `mistral`, ...); empty: by its chat
    template, where the model is a folder, else `hermes`."""
    args: list[str] = []
    """Further arguments of `vllm serve`, such as `["--max-model-len", "8192"]`."""
    start_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 900.0
    """How long it may take to load the model."""
