"""How a model writes tool calls, told from its chat template and vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Style: TypeAlias = Literal["hermes", "llama", "mistral"]

HERMES_BEGIN = "<tool_call>"
HERMES_END = "</tool_call>"
LLAMA_TAG = "<|python_tag|>"
MISTRAL_TAG = "[TOOL_CALLS]"
MISTRAL_ARGS = "[ARGS]"


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A model's tool-call format.

    Attributes:
        style: `hermes`: `<tool_call>{"name": .., "arguments": {..}}</tool_call>`, any number of them (Qwen, Hermes);
            `llama`: the whole answer is `{"name": .., "parameters": {..}}`, perhaps after `<|python_tag|>`;
            `mistral`: `[TOOL_CALLS] [{"name": .., "arguments": {..}}, ..]`, or `[TOOL_CALLS]name[ARGS]{..}`.
        gap: hermes: what stands between the marker and the JSON.
        args_marker: mistral: calls are written `name[ARGS]{..}`.
        native: the template itself tells the model of its tools; else the codec does, in a system message.
    """

    style: Style = "hermes"
    gap: str = ""
    args_marker: bool = False
    native: bool = True

    @property
    def markers(self) -> tuple[str, ...]:
        """Special tokens that a parser must get to see."""
        if self.style == "hermes":
            return (HERMES_BEGIN, HERMES_END)
        return (LLAMA_TAG,) if self.style == "llama" else (MISTRAL_TAG, MISTRAL_ARGS)


def detect(template: str, vocabulary: Mapping[str, int]) -> ToolFormat:
    """Find the format of a chat template; a template without tools gets the Hermes format."""
    if "tools" not in template:
        return ToolFormat(gap="\n", native=False)
    if HERMES_BEGIN in template:
        newline = f"{HERMES_BEGIN}\\n" in template or f"{HERMES_BEGIN}\n" in template
        return ToolFormat(gap="\n" if newline else "")
    if MISTRAL_TAG in template or MISTRAL_TAG in vocabulary:
        return ToolFormat("mistral", args_marker=MISTRAL_ARGS in template)
    if LLAMA_TAG in vocabulary or '"parameters"' in template:
        return ToolFormat("llama")
    return ToolFormat(gap="\n", native=False)
