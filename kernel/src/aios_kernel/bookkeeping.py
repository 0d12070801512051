"""What an ended syscall adds to its program's account, and what the audit and the trace call it."""

from __future__ import annotations

from typing import Any

from aios_kernel.calls import OpenCall


def count(open_call: OpenCall, queued_s: float, ran_s: float) -> None:
    """Add an ended call to its program's account; times in seconds."""
    account, family = open_call.program.account, open_call.name.partition(".")[0]
    if family == "llm":
        account.llm_calls += 1
        account.prompt_tokens += open_call.usage.prompt_tokens
        account.cached_tokens += open_call.usage.cached_tokens
        account.completion_tokens += open_call.usage.completion_tokens
        open_call.program.terms.spend(open_call.usage.prompt_tokens + open_call.usage.completion_tokens)
        account.queued_s += queued_s
        account.running_s += ran_s
        account.service_tokens += sum(generation.computed for generation in open_call.generations)
    elif open_call.name in {"tool.begin", "tool.call"}:
        account.tool_calls += 1
    elif family == "memory":
        account.memory_calls += 1
    elif family == "storage":
        account.storage_calls += 1
    elif family != "kernel":
        account.other_calls += 1


def resource_of(call: Any) -> str:
    """What the call is about, for the audit and the trace: a model, a tool, a space; never contents."""
    for field in ("resource", "namespace", "owner", "name", "to", "program", "target", "model"):
        value = getattr(call, field, None)
        if isinstance(value, str) and value:
            return value
    return ""
