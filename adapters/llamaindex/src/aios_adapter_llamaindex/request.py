"""What an LLM object and a call's keyword arguments ask for, as one `LlmChat`.

Integrations spell their options differently; the common spellings are read here, from the call first, then from the
object's dictionaries of extra options, then from its own fields. Knobs of a certain server (`keep_alive`, `num_ctx`)
mean nothing to the kernel's model and are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.tools.types import BaseTool

from aios_adapter_llamaindex.messages import kernel_messages
from aios_kernel.errors import Unsupported
from aios_kernel.openai_wire import chat_schema
from aios_kernel.syscalls import LlmChat, Message, Sampling, ToolSpec

_EXTRA = ("additional_kwargs", "generate_kwargs", "model_kwargs")
_MAX_TOKENS = ("max_completion_tokens", "max_output_tokens", "max_new_tokens", "num_predict", "max_tokens")
_CHOICES = {"any": "required", "auto": "auto", "none": "none", "required": "required"}


def chat_call(llm: BaseLLM, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> LlmChat:
    """The syscall for a chat. Raises Unsupported for content or tools that the kernel does not serve."""
    options = _Options(llm, kwargs)
    tools = [_tool_spec(tool) for tool in kwargs.get("tools") or ()]
    said = kernel_messages(messages)
    instructions = options.first("instructions")
    if isinstance(instructions, str) and instructions:
        said.insert(0, Message("system", instructions))
    parallel = kwargs.get("parallel_tool_calls")
    return LlmChat(
        messages=said,
        tools=tools,
        tool_choice=_tool_choice(kwargs.get("tool_choice")) if tools else "auto",
        parallel_tool_calls=True if parallel is None else bool(parallel),
        schema=_schema(options.first("response_format"), options.first("format")),
        sampling=_sampling(options),
        model=_model_name(options),
    )


class _Options:
    """One look-up over the call, the object's extra options and its fields."""

    def __init__(self, llm: BaseLLM, kwargs: Mapping[str, Any]) -> None:
        fields = {name: getattr(llm, name, None) for name in type(llm).model_fields}
        extras = [fields.get(name) for name in _EXTRA]
        self._layers: list[Mapping[str, Any]] = [kwargs, *(e for e in extras if isinstance(e, Mapping)), fields]

    def first(self, *names: str) -> Any:
        """The innermost value under any of the names that is not None."""
        for layer in self._layers:
            for name in names:
                if layer.get(name) is not None:
                    return layer[name]
        return None


def _sampling(options: _Options) -> Sampling:
    max_tokens = options.first(*_MAX_TOKENS)
    stop = options.first("stop", "stop_sequences")
    logprobs = options.first("logprobs")
    return Sampling(
        temperature=_number(options.first("temperature")),
        top_p=_number(options.first("top_p")),
        top_k=options.first("top_k"),
        seed=options.first("seed"),
        stop=[stop] if isinstance(stop, str) else list(stop or ()),
        # Some servers spell "no limit" as -1 or -2.
        max_tokens=max_tokens if isinstance(max_tokens, int) and max_tokens > 0 else None,
        logprobs=bool(logprobs),
        top_logprobs=(options.first("top_logprobs") or 0) if logprobs else 0,
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _model_name(options: _Options) -> str | None:
    name = options.first("model", "model_name", "model_id")
    return name if isinstance(name, str) and name else None


def _schema(response_format: Any, output_format: Any) -> dict[str, Any] | None:
    if isinstance(response_format, type) and issubclass(response_format, BaseModel):
        return response_format.model_json_schema()
    if isinstance(response_format, Mapping):
        return chat_schema(response_format)
    if isinstance(output_format, Mapping):  # Ollama's spelling
        return dict(output_format)
    return {} if output_format == "json" else None


def _tool_spec(tool: Any) -> ToolSpec:
    if isinstance(tool, BaseTool):
        tool = tool.metadata.to_openai_tool(skip_length_check=True)
    elif isinstance(tool, BaseModel):
        tool = tool.model_dump()
    if isinstance(tool, Mapping):
        inner = tool.get("function", tool)
        if isinstance(inner, Mapping) and inner.get("name"):
            schema = inner.get("parameters") or inner.get("input_schema") or {}
            return ToolSpec(inner["name"], inner.get("description") or "", dict(schema))
    raise Unsupported(f"a tool of this form is not known here: {str(tool)[:120]}", fix="offer function tools")


def _tool_choice(choice: Any) -> str:
    """The choice in the spellings of OpenAI (nested or flat), Anthropic and plain names."""
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        return _CHOICES.get(choice, choice)
    if isinstance(choice, Mapping):
        inner = choice.get("function", choice)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if isinstance(name, str):
            return name
        if choice.get("type") in _CHOICES:
            return _CHOICES[str(choice["type"])]
    raise Unsupported(f"tool_choice = {str(choice)[:120]} is not known here", fix="choose auto, required or a name")
