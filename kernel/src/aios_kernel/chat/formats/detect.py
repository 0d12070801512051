"""Telling a model's tool-call format from its chat template and its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from aios_kernel.chat.formats import hermes, llama, mistral
from aios_kernel.chat.formats.protocol import ToolFormat


def detect(template: str, vocabulary: Mapping[str, int]) -> ToolFormat:
    """Find the format of a chat template; one without tools, or with unknown ones, gets the Hermes format."""
    if "tools" not in template:
        return hermes.HermesFormat(native=False)
    if hermes.BEGIN in template:
        newline = f"{hermes.BEGIN}\\n" in template or f"{hermes.BEGIN}\n" in template
        return hermes.HermesFormat(gap="\n" if newline else "")
    if mistral.TAG in template:
        return mistral.MistralFormat(args_marker=mistral.ARGS in template)
    if '"parameters"' in template:
        return llama.LlamaFormat()
    # The template says nothing; a token of its own tells of the training.
    if mistral.TAG in vocabulary:
        return mistral.MistralFormat(args_marker=mistral.ARGS in vocabulary)
    return llama.LlamaFormat() if llama.TAG in vocabulary else hermes.HermesFormat(native=False)
