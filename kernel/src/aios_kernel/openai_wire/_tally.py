"""Usage, log-probabilities and what was left out, in OpenAI's spelling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from aios_kernel.syscalls import TokenLogprob, Usage, WindowCut

_LOWEST = -9999.0
"""JSON has no minus infinity; OpenAI writes this for a token that cannot come."""


def chat_usage(usage: Usage) -> dict[str, Any]:
    """Usage of Chat Completions."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def responses_usage(usage: Usage) -> dict[str, Any]:
    """Usage of the Responses API."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def token_logprobs(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Log-probabilities token by token, the same in both APIs."""
    return [
        {**_entry(entry.token, entry.logprob), "top_logprobs": [_entry(token, value) for token, value in entry.top]}
        for entry in logprobs
    ]


def _entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": max(logprob, _LOWEST), "bytes": list(token.encode("utf-8", "surrogatepass"))}


def window_cut(cut: WindowCut | None) -> dict[str, Any]:
    """`aios_window`: what did not fit the model's window and was left out; nothing otherwise."""
    return {"aios_window": msgspec.to_builtins(cut)} if cut is not None else {}
