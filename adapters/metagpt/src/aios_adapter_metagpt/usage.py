"""Asking the kernel for a MetaGPT model object, with MetaGPT's own bookkeeping."""

from __future__ import annotations

from typing import Any

from aios_adapters import Scope
from aios_kernel.syscalls import LlmChat, LlmResult, Usage


async def ask(scope: Scope, llm: Any, call: LlmChat, timeout: int | None) -> LlmResult:
    """Ask the kernel's model for a MetaGPT model object and book the usage."""
    result = await scope.achat(call, timeout_s=llm.get_timeout(timeout))
    book(llm, result.usage)
    return result


def book(llm: Any, usage: Usage) -> None:
    """Count the tokens of a call. No money is spent: MetaGPT books a self-hosted model in the same way."""
    from metagpt.utils.cost_manager import TokenCostManager

    if llm.cost_manager is not None and llm.config.calc_usage:
        TokenCostManager.update_cost(llm.cost_manager, usage.prompt_tokens, usage.completion_tokens, llm.model)
