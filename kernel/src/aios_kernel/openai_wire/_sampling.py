"""The fields that say how to choose tokens, and the extensions that OpenAI's API does not have."""

from __future__ import annotations

import msgspec

from aios_kernel.errors import InvalidRequest
from aios_kernel.openai_wire._reader import Reader
from aios_kernel.syscalls import Sampling

MOST_TOP_LOGPROBS = 20
MOST_ANSWERS = 64
MOST_TOKENS = 1 << 31
"""Of an answer, and to choose among: what the kernel takes of `max_tokens` and `top_k`."""
MOST_DIGITS = 9
"""Of a token's id."""


def read_sampling(fields: Reader, *, max_tokens: int | None, logprobs: bool) -> Sampling:
    """What both APIs say of sampling: `temperature`, `top_p`, `top_logprobs`, `seed`, and the extensions.

    The extensions are vLLM's `top_k` (0 and -1: all), `min_p` and `repetition_penalty`; the other penalties and the
    bias, which only Chat Completions has by itself; and, for the evals, `aios_forced`: the answer's text, computed but
    not chosen.
    """
    return Sampling(
        temperature=fields.number("temperature", 0.0, 2.0),
        top_p=fields.number("top_p", 0.0, 1.0),
        top_k=_top_k(fields),
        seed=fields.integer("seed", -(2**63)),
        max_tokens=max_tokens,
        logprobs=logprobs,
        top_logprobs=fields.integer("top_logprobs", 0, MOST_TOP_LOGPROBS) or 0,
        forced=fields.text("aios_forced"),
        min_p=fields.number("min_p", 0.0, 1.0),
        presence_penalty=fields.number("presence_penalty", -2.0, 2.0),
        frequency_penalty=fields.number("frequency_penalty", -2.0, 2.0),
        repetition_penalty=fields.number("repetition_penalty", 0.01, 100.0),
        logit_bias=_logit_bias(fields),
    )


def read_chat_sampling(fields: Reader, *, max_tokens: int | None, logprobs: bool) -> Sampling:
    """The same with what only Chat Completions has: `n`, `stop` and vLLM's `prompt_logprobs`."""
    sampling = read_sampling(fields, max_tokens=max_tokens, logprobs=logprobs)
    return msgspec.structs.replace(
        sampling,
        stop=_stop(fields),
        n=fields.integer("n", 1, MOST_ANSWERS) or 1,
        prompt_logprobs=fields.integer("prompt_logprobs", 0, MOST_TOP_LOGPROBS),
    )


def _top_k(fields: Reader) -> int | None:
    top_k = fields.integer("top_k", -1, MOST_TOKENS)
    return 0 if top_k == -1 else top_k


def _logit_bias(fields: Reader) -> dict[int, float]:
    """Token ids, which JSON spells as strings, and their biases."""
    given = Reader(fields.mapping("logit_bias") or {}, fields.at("logit_bias"))
    biases: dict[int, float] = {}
    for name in given.names():
        if not name.isascii() or not name.isdigit() or len(name) > MOST_DIGITS:
            raise InvalidRequest(f'the field "{given.at(name)}" must be named by a token id')
        biases[int(name)] = given.number(name, -100.0, 100.0) or 0.0
    return biases


def _stop(fields: Reader) -> list[str]:
    """Stop strings: one string or a list of strings, none of them empty."""
    value = fields.value("stop")
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise InvalidRequest(f'the field "{fields.at("stop")}" must be a string or a list of strings, none of it empty')
    return stops
