"""From an `LlmChat` syscall to a generation: model names, templates, limits, grammars, stop strings."""

from __future__ import annotations

import hashlib
import secrets
import time

from aios_kernel import errors
from aios_kernel.chat.generation import Generation, Order
from aios_kernel.chat.history import history_keys
from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.config import Config
from aios_kernel.engine.protocol import Grammar, SamplingParams
from aios_kernel.process import Program
from aios_kernel.syscalls import LlmChat, Sampling

_INLINE_CHARACTERS = 4000
_TOP_LOGPROBS = 20


class ChatService:
    """Prepares generations for the loaded model."""

    def __init__(self, model: LoadedModel, config: Config) -> None:
        self._model = model
        self._names = config.models
        self._strict = config.strict
        # The kernel, not the caller, keeps trust domains apart in the prefix cache; a fresh key each life.
        self._salt_key = secrets.token_bytes(16)

    def is_small(self, call: LlmChat) -> bool:
        """Whether preparing takes well under a millisecond, so that it may run on the socket loop."""
        if call.schema is not None or call.tools:
            return False
        return sum(len(message.content) for message in call.messages) < _INLINE_CHARACTERS

    def prepare(self, number: int, call: LlmChat, program: Program) -> Generation:
        """Resolve a call. Raises InvalidRequest and its kin; thread-safe."""
        codec = self._model.codec
        self._check_model(call.model)
        _check_sampling(call.sampling)
        prompt = codec.encode_chat(call)
        order = Order(
            model=self._model.name,
            program=program.id,
            agent=program.agent,
            group=program.group,
            priority=program.priority,
            salt=self._salt(program),
            prompt=prompt,
            sampling=self._sampling(call.sampling),
            max_tokens=self._limit(call.sampling, len(prompt)),
            stop=tuple(call.sampling.stop),
            grammar=self._grammar(call),
            logprobs=call.sampling.logprobs,
            history=history_keys(call.messages),
        )
        return Generation(number, order, codec, codec.stream(call), time.monotonic())

    def _check_model(self, asked: str | None) -> None:
        if asked is None or asked == self._model.name or not self._strict:
            return
        if self._names.get(asked) != self._model.name:
            raise errors.UnknownModel(
                f'model "{asked}" is not served here; this kernel serves "{self._model.name}"',
                fix=f'map it in aios.toml: [models] "{asked}" = "{self._model.name}", or set strict = false',
            )

    def _salt(self, program: Program) -> bytes:
        domain = f"{program.principal}\0{program.group}".encode()
        return hashlib.blake2b(domain, key=self._salt_key, digest_size=16).digest()

    def _sampling(self, asked: Sampling) -> SamplingParams:
        defaults = self._model.codec.defaults
        return SamplingParams(
            temperature=defaults.temperature if asked.temperature is None else asked.temperature,
            top_p=defaults.top_p if asked.top_p is None else asked.top_p,
            top_k=defaults.top_k if asked.top_k is None else asked.top_k,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            top_logprobs=asked.top_logprobs if asked.logprobs else None,
            forced=self._forced(asked.forced),
        )

    def _forced(self, text: str | None) -> tuple[int, ...]:
        if text is None:
            return ()
        codec = self._model.codec
        return (*codec.encode(text), min(codec.end_tokens))

    def _limit(self, sampling: Sampling, prompt: int) -> int:
        window, pool = self._model.codec.window, self._model.engine.capabilities.kv_tokens
        if prompt >= window:
            raise errors.ContextTooLong(
                f"the prompt has {prompt:,} tokens; the window of {self._model.name} is {window:,}",
                fix="shorten the conversation, or serve a model with a longer window: aios serve MODEL",
            )
        if prompt >= pool:
            raise errors.OutOfMemory(
                f"the prompt has {prompt:,} tokens; the KV pool holds {pool:,}",
                fix=f"aios serve --kv-tokens {2 * prompt}",
            )
        room = min(window, pool) - prompt
        return min(room, sampling.max_tokens) if sampling.max_tokens is not None else room

    def _grammar(self, call: LlmChat) -> Grammar | None:
        if call.schema is None and call.tool_choice in {"auto", "none"}:
            return None
        if call.sampling.forced is not None:
            return None  # the text is given; a grammar could only contradict it
        return self._model.codec.grammar(call)


def _check_sampling(sampling: Sampling) -> None:
    limits = (
        ("temperature", sampling.temperature, 0.0, 100.0),
        ("top_p", sampling.top_p, 0.0, 1.0),
        ("top_k", sampling.top_k, 0, 1 << 31),
        ("max_tokens", sampling.max_tokens, 1, 1 << 31),
        ("top_logprobs", sampling.top_logprobs, 0, _TOP_LOGPROBS),
        ("seed", sampling.seed, -(1 << 63), (1 << 63) - 1),
    )
    for name, value, low, high in limits:
        if value is not None and not low <= value <= high:
            raise errors.InvalidRequest(f"{name} is {value}; it must be from {low} to {high}", fix=f"change {name}")
    if sampling.top_p is not None and sampling.top_p == 0.0:
        raise errors.InvalidRequest("top_p is 0; it must be above 0", fix="use temperature=0 for greedy decoding")
