"""Conversions between MetaGPT's chats (OpenAI's dictionaries) and the kernel's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

from aios_kernel.errors import Unsupported
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling, ToolSpec

Role = Literal["system", "user", "assistant", "tool"]


def chat_of(llm: Any, messages: Iterable[Mapping[str, Any]], **options: Any) -> LlmChat:
    """The kernel's chat for a MetaGPT model object, its messages and the options of one OpenAI request."""
    return LlmChat(
        messages=[_message(message) for message in messages],
        tools=[_tool(tool) for tool in options.get("tools") or ()],
        tool_choice=_choice(options.get("tool_choice")),
        sampling=sampling_of(llm.config, options),
        model=llm.model,
    )


def sampling_of(config: Any, options: Mapping[str, Any]) -> Sampling:
    """Sampling from MetaGPT's `LLMConfig`; the options of one request go before. Its neutral values mean nothing."""
    stop = options.get("stop", config.stop) or []
    return Sampling(
        temperature=options.get("temperature", config.temperature),
        top_p=options.get("top_p", config.top_p if config.top_p != 1.0 else None),
        top_k=config.top_k or None,
        seed=options.get("seed", config.seed),
        stop=[stop] if isinstance(stop, str) else list(stop),
        max_tokens=options.get("max_tokens", config.max_token) or None,
    )


def completion_of(result: LlmResult) -> dict[str, Any]:
    """The answer as OpenAI's chat completion, which MetaGPT's providers are built around."""
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in result.tool_calls
    ]
    message = {
        "role": "assistant",
        "content": result.text or None if calls else result.text,
        "tool_calls": calls or None,
    }
    return {
        "id": "aios",
        "object": "chat.completion",
        "created": 0,
        "model": result.model,
        "choices": [{"index": 0, "message": message, "finish_reason": result.finish_reason, "logprobs": None}],
        "usage": {
            "prompt_tokens": result.usage.prompt_tokens,
            "completion_tokens": result.usage.completion_tokens,
            "total_tokens": result.usage.prompt_tokens + result.usage.completion_tokens,
        },
    }


def _message(message: Mapping[str, Any]) -> Message:
    role = message["role"]
    # A role that is a role's name ("Human", "Engineer") comes from `Message.to_dict`; it speaks to the model.
    known = cast(Role, role if role in {"system", "user", "assistant", "tool"} else "user")
    return Message(role=known, content=_text(message["content"]), tool_call_id=message.get("tool_call_id"))


def _text(content: str | list[dict[str, Any]] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.get("type") != "text":
            raise Unsupported(
                f"the message has a part of the type {part.get('type')!r}; the kernel's models read text only",
                fix="ask without images",
            )
    return "\n".join(part["text"] for part in content)


def _tool(tool: Mapping[str, Any]) -> ToolSpec:
    function = tool["function"]
    return ToolSpec(
        name=function["name"], description=function.get("description", ""), parameters=function.get("parameters", {})
    )


def _choice(choice: str | Mapping[str, Any] | None) -> str:
    return choice["function"]["name"] if isinstance(choice, Mapping) else choice or "auto"
