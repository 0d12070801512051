"""From the sampling that a call asks for to what the engine is told."""

from __future__ import annotations

import random
from typing import TypeVar

from aios_kernel.engine.protocol import Capabilities, SamplingParams
from aios_kernel.errors import InvalidRequest, Unsupported
from aios_kernel.syscalls import Sampling

MOST_TOP_LOGPROBS = 20
MOST_ANSWERS = 64
_COLDEST = 1e-5
"""A lower temperature is greedy decoding."""
_SEED_BITS = 63
_seeds = random.Random()
"""Seeds are no secrets, and asking the system for each took longer than the rest of a call's preparation."""
_Number = TypeVar("_Number", int, float)


def resolve(asked: Sampling, defaults: SamplingParams, forced: tuple[int, ...]) -> SamplingParams:
    """What the engine is told; what was not asked for is the model's own default.

    Args:
        asked: checked by `check`.
        defaults: the model's.
        forced: tokens of the answer, if it is given.
    """
    temperature = _chosen(asked.temperature, defaults.temperature)
    return SamplingParams(
        temperature=0.0 if temperature < _COLDEST else temperature,
        top_p=_chosen(asked.top_p, defaults.top_p),
        top_k=_chosen(asked.top_k, defaults.top_k),
        min_p=_chosen(asked.min_p, defaults.min_p),
        presence_penalty=_chosen(asked.presence_penalty, defaults.presence_penalty),
        frequency_penalty=_chosen(asked.frequency_penalty, defaults.frequency_penalty),
        repetition_penalty=_chosen(asked.repetition_penalty, defaults.repetition_penalty),
        logit_bias=tuple(asked.logit_bias.items()),
        seed=_seeds.getrandbits(_SEED_BITS) if asked.seed is None else asked.seed,
        top_logprobs=asked.top_logprobs if asked.logprobs else None,
        prompt_logprobs=asked.prompt_logprobs,
        margin=defaults.margin,
        forced=forced,
    )


def _chosen(asked: _Number | None, default: _Number) -> _Number:
    return default if asked is None else asked


def answer_seed(seed: int, index: int) -> int:
    """The seed of one of several answers; the first has the call's own."""
    return (seed + index + (1 << _SEED_BITS)) % (1 << _SEED_BITS + 1) - (1 << _SEED_BITS)


_LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1 << 31),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 100.0),
    "max_tokens": (1, 1 << 31),
    "top_logprobs": (0, MOST_TOP_LOGPROBS),
    "prompt_logprobs": (0, MOST_TOP_LOGPROBS),
    "n": (1, MOST_ANSWERS),
    "seed": (-(1 << _SEED_BITS), (1 << _SEED_BITS) - 1),
}


def check(sampling: Sampling, engine: Capabilities) -> None:
    """Refuse what is out of range or not offered, by name.

    Raises:
        InvalidRequest: names the field.
        Unsupported: this engine does not tell that.
    """
    for name, (low, high) in _LIMITS.items():
        value = getattr(sampling, name)
        if value is not None and not low <= value <= high:
            raise InvalidRequest(f"{name} is {value}; it must be from {low} to {high}", fix=f"change {name}")
    if sampling.top_p is not None and sampling.top_p == 0.0:
        raise InvalidRequest("top_p is 0; it must be above 0", fix="use temperature=0 for greedy decoding")
    _check_bias(sampling, engine.vocab)
    if sampling.prompt_logprobs is not None and not engine.prompt_logprobs:
        raise Unsupported("prompt_logprobs is not supported by this engine", fix="leave prompt_logprobs out")
    if sampling.n > 1 and sampling.forced is not None:
        raise InvalidRequest("n is above 1, but the answer is forced", fix="leave n out")


def _check_bias(sampling: Sampling, vocab: int) -> None:
    for token, bias in sampling.logit_bias.items():
        if not -100.0 <= bias <= 100.0:
            raise InvalidRequest(
                f"logit_bias of token {token} is {bias}; it must be from -100 to 100", fix="change logit_bias"
            )
        if token < 0 or (vocab and token >= vocab):
            raise InvalidRequest(f"logit_bias names token {token}; the model has {vocab:,}", fix="change logit_bias")
