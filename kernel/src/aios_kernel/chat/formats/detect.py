"""Telling a model's tool-call format from its chat template and its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from aios_kernel.chat.formats import hermes, llama, mistral
from aios_kernel.chat.formats.protocol import ToolFormat


def detect(template: str, vocabulary: Mapping[str, int]) -> ToolFormat:
    """Find the format of a chat template; one without tools, or with unknown ones, gets the Hermes format."""
    if "tools" in template:
        if hermes.BEGIN in template:
            newline = f"{hermes.BEGIN}\\n" in template or f"{hermes.BEGIN}\n" in template
            return hermes.HermesFormat(gap="\n" if newline else "")
        if mistral.TAG in template or mistral.TAG in vocabulary:
            return mistral.MistralFormat(args_marker=mistral.ARGS in template)
        if llama.TAG in vocabulary or '"parameters"' in template:
            return llama.LlamaFormat()
    return hermes.HermesFormat(native=False)
