"""How models write tool calls: one format a module, and `detect`, which tells a model's from its chat template."""

from aios_kernel.chat.formats.detect import detect
from aios_kernel.chat.formats.hermes import HermesFormat
from aios_kernel.chat.formats.llama import LlamaFormat
from aios_kernel.chat.formats.mistral import MistralFormat
from aios_kernel.chat.formats.protocol import ToolCallParser, ToolFormat

__all__ = ["HermesFormat", "LlamaFormat", "MistralFormat", "ToolCallParser", "ToolFormat", "detect"]
