"""Model calls of every provider: `acompletion_text` (all of `aask` ends there) and `acompletion`."""

from __future__ import annotations

from typing import Any

from aios_adapter_metagpt import openai_llm
from aios_adapter_metagpt.chats import chat_of, completion_of
from aios_adapter_metagpt.usage import ask, book
from aios_adapters import Scope
from aios_adapters.patching import Patcher
from aios_kernel.errors import Unsupported
from aios_kernel.syscalls import LlmChat, LlmDelta


def install(patcher: Patcher) -> None:
    """Reroute the providers that are imported and those that will be."""
    from metagpt.provider.base_llm import BaseLLM

    patcher.leaves(BaseLLM, {"acompletion_text": _acompletion_text, "acompletion": _acompletion}, kind="model")


async def _acompletion_text(
    scope: Scope, original: Any, llm: Any, /, messages: list[dict[str, Any]], stream: bool = False, timeout: int = 0
) -> str:
    if _is_human(llm):
        return await original(llm, messages, stream, timeout)
    call = chat_of(llm, messages)
    if stream:
        return await _streamed(scope, llm, call, timeout)
    return (await ask(scope, llm, call, timeout)).text


async def _streamed(scope: Scope, llm: Any, call: LlmChat, timeout: int) -> str:
    """Show the text as it comes, as the providers do, and give all of it."""
    from metagpt.logs import log_llm_stream

    text = ""
    async for item in scope.astream(call, timeout_s=llm.get_timeout(timeout)):
        if isinstance(item, LlmDelta):
            log_llm_stream(item.text)
        else:
            text = item.text
            book(llm, item.usage)
    log_llm_stream("\n")
    return text


async def _acompletion(
    scope: Scope, original: Any, llm: Any, /, messages: list[dict[str, Any]], timeout: int = 0
) -> Any:
    """The answer as an object of the OpenAI SDK from the providers that give one, else as a dictionary of its shape."""
    from metagpt.provider.base_llm import BaseLLM
    from metagpt.provider.openai_api import OpenAILLM

    if _is_human(llm):
        return await original(llm, messages, timeout)
    if not isinstance(llm, OpenAILLM) and type(llm).get_choice_text is not BaseLLM.get_choice_text:
        raise Unsupported(
            f"acompletion of {type(llm).__name__} gives its vendor's own objects, which the kernel does not make",
            fix="use aask or acompletion_text, or api_type: openai in config2.yaml",
        )
    result = await ask(scope, llm, chat_of(llm, messages), timeout)
    return openai_llm.chat_completion(result) if isinstance(llm, OpenAILLM) else completion_of(result)


def _is_human(llm: Any) -> bool:
    from metagpt.provider import HumanProvider

    return isinstance(llm, HumanProvider)
