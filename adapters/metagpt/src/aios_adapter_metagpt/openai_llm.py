"""What the OpenAI provider (also Azure's and those shaped like it) has beyond the others: its objects, and tools."""

from __future__ import annotations

import functools
from typing import Any

from aios_adapter_metagpt.chats import chat_of, completion_of
from aios_adapter_metagpt.settings import PLACEHOLDER, missing_key
from aios_adapter_metagpt.usage import ask
from aios_adapters import Scope
from aios_adapters.patching import Patcher
from aios_kernel.syscalls import LlmResult


def install(patcher: Patcher) -> None:
    """Reroute completions and tool calls (`aask_code`), and refuse the placeholder key outside of a scope."""
    from metagpt.provider.openai_api import OpenAILLM

    completions = {"_achat_completion": _achat_completion, "_achat_completion_function": _achat_completion_function}
    patcher.leaves(OpenAILLM, completions, kind="model")
    patcher.replace(OpenAILLM, "_cons_kwargs", _with_a_key(OpenAILLM._cons_kwargs))


def chat_completion(result: LlmResult) -> Any:
    """The answer as an object of the OpenAI SDK."""
    from openai.types.chat import ChatCompletion

    return ChatCompletion.model_validate(completion_of(result))


async def _achat_completion(
    scope: Scope, original: Any, llm: Any, /, messages: list[dict[str, Any]], timeout: int = 0
) -> Any:
    return await _completion(scope, llm, messages, timeout, {})


async def _achat_completion_function(
    scope: Scope, original: Any, llm: Any, /, messages: Any, timeout: int = 0, **options: Any
) -> Any:
    return await _completion(scope, llm, llm.format_msg(messages), timeout, options)


async def _completion(
    scope: Scope, llm: Any, messages: list[dict[str, Any]], timeout: int, options: dict[str, Any]
) -> Any:
    return chat_completion(await ask(scope, llm, chat_of(llm, messages, **options), timeout))


def _with_a_key(original: Any) -> Any:
    """`_cons_kwargs` builds every request that goes to the network: there a key must be."""

    @functools.wraps(original)
    def cons_kwargs(llm: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if llm.config.api_key == PLACEHOLDER:
            raise missing_key()
        return original(llm, *args, **kwargs)

    return cons_kwargs
