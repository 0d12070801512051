"""The fields that say how to choose tokens, and the extensions that OpenAI's API does not have."""

from __future__ import annotations

from aios_kernel.errors import InvalidRequest
from aios_kernel.openai_wire._reader import Reader
from aios_kernel.syscalls import Sampling

MOST_TOP_LOGPROBS = 20


def read_sampling(fields: Reader, *, max_tokens: int | None, logprobs: bool, stop: list[str] | None = None) -> Sampling:
    """Sampling of a request: `temperature`, `top_p`, `top_logprobs`, `seed` and the extensions.

    The extensions are `top_k` and, for the evals, `aios_forced`: the answer's text, computed but not chosen.
    """
    top_logprobs = fields.integer("top_logprobs", 0, MOST_TOP_LOGPROBS) or 0
    return Sampling(
        temperature=fields.number("temperature", 0.0, 2.0),
        top_p=fields.number("top_p", 0.0, 1.0),
        top_k=fields.integer("top_k", 1),
        seed=fields.integer("seed", -(2**63)),
        stop=stop or [],
        max_tokens=max_tokens,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        forced=fields.text("aios_forced"),
    )


def read_stop(fields: Reader) -> list[str]:
    """Stop strings: one string or a list of strings, none of them empty."""
    value = fields.value("stop")
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise InvalidRequest(f'the field "{fields.at("stop")}" must be a string or a list of strings, none of it empty')
    return stops
