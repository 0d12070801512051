"""From an `LlmChat` syscall to a generation: model names, templates, limits, grammars, stop strings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import secrets
import time
from collections.abc import Callable

from aios_kernel import errors
from aios_kernel.chat.generation import Generation, Order
from aios_kernel.chat.history import history_keys
from aios_kernel.chat.loras import Loras
from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.chat.sampling import answer_seed, check, resolve
from aios_kernel.chat.window_fit import Fitted, Fitting, WindowFitter
from aios_kernel.config import Config
from aios_kernel.engine.protocol import Grammar, SamplingParams
from aios_kernel.process import Program
from aios_kernel.syscalls import LlmChat, LlmEmbed, Sampling, WindowStrategy
from aios_kernel.terms import Terms

_INLINE_CHARACTERS = 4000
_SALTS = 4096
"""Remembered; one more is worked out anew."""


class ChatService:
    """Prepares generations for the loaded model."""

    def __init__(self, model: LoadedModel, config: Config) -> None:
        self._model = model
        self._names = config.models
        self._loras = Loras(model, config.models)
        self._strict = config.strict
        # The kernel, not the caller, keeps trust domains apart in the prefix cache; a fresh key each life.
        self._salts = functools.lru_cache(_SALTS)(functools.partial(_salt, secrets.token_bytes(16)))
        self._window: WindowStrategy = config.window
        room = min(model.codec.window, model.engine.capabilities.kv_tokens)
        self._fitter = WindowFitter(model.codec, room, model.name) if model.engine.capabilities.step_control else None

    def loras(self) -> list[str]:
        """Names of the model's adapters."""
        return [*self._loras.known()]

    def served_name(self, call: LlmChat | LlmEmbed) -> str:
        """What really serves a call, for access: an adapter, the model (whatever it is called), the embedder."""
        named = self._names.get(call.model or "", call.model)
        if isinstance(call, LlmEmbed):
            return self._model.name if named == self._model.name else "embedder"
        if named is not None and named in self._loras.known():
            return named
        return call.lora or self._model.name

    def fits_by_itself(self, call: LlmChat, program: Program) -> bool:
        """Whether no strategy is declared for this call's window; else `fit` must see it before it is prepared."""
        return self._fitter is None or self._strategy(call, program) == "refuse"

    def fit(self, call: LlmChat, program: Program) -> Fitting:
        """Make a call fit the window by its declared strategy; see `WindowFitter.fit`."""
        assert self._fitter is not None
        return self._fitter.fit(call, self._strategy(call, program), self._salt(program))

    def _strategy(self, call: LlmChat, program: Program) -> WindowStrategy:
        return call.window or program.window or self._window

    def is_small(self, call: LlmChat) -> bool:
        """Whether preparing takes well under a millisecond, so that it may run on the socket loop."""
        if call.tools or call.schema is not None or call.regex is not None or call.choice:
            return False
        return sum(len(message.content) for message in call.messages) < _INLINE_CHARACTERS

    def prepare(
        self, number: int, call: LlmChat | Fitted, program: Program, deadline_s: float | None = None
    ) -> Generation:
        """Resolve a call, which its caller gives up at `deadline_s` (`time.monotonic()`).

        Raises InvalidRequest and its kin; thread-safe.
        """
        codec = self._model.codec
        prompt, call = (call.prompt, call.call) if isinstance(call, Fitted) else (None, call)
        self._check_model(call.model)
        lora = self._loras.of(call)
        check(call.sampling, self._model.engine.capabilities)
        prompt = prompt or codec.encode_chat(call)
        order = Order(
            model=lora or self._model.name,
            program=program.id,
            agent=program.agent,
            group=program.group,
            priority=program.priority,
            salt=self._salt(program),
            prompt=prompt,
            sampling=self._sampling(call.sampling),
            max_tokens=self._limit(call.sampling, len(prompt), program.terms, lora),
            stop=tuple(call.sampling.stop),
            grammar=self._grammar(call),
            logprobs=call.sampling.logprobs,
            history=history_keys(call.messages),
            root=program.root,
            deadline_s=deadline_s,
            lora=lora,
            quiet=self._is_quiet(call),
        )
        return Generation(number, order, codec, codec.stream(call), time.monotonic())

    def prepare_all(
        self, next_id: Callable[[], int], call: LlmChat | Fitted, program: Program, deadline_s: float | None = None
    ) -> list[Generation]:
        """Resolve a call that wants `sampling.n` answers; the others are forked from the first."""
        first = self.prepare(next_id(), call, program, deadline_s)
        call = call.call if isinstance(call, Fitted) else call
        return [first, *(self._another(next_id(), first, call, index) for index in range(1, call.sampling.n))]

    def _another(self, number: int, first: Generation, call: LlmChat, index: int) -> Generation:
        """One more answer to the same prompt, with a seed of its own; only the first one reports on the prompt."""
        sampling = dataclasses.replace(
            first.order.sampling, seed=answer_seed(first.order.sampling.seed, index), prompt_logprobs=None
        )
        grammar = first.order.grammar.fork() if first.order.grammar is not None else None
        order = dataclasses.replace(first.order, sampling=sampling, grammar=grammar)
        codec = self._model.codec
        return Generation(number, order, codec, codec.stream(call), first.arrived_s, index=index, first=first)

    def _is_quiet(self, call: LlmChat) -> bool:
        """Whether an answer's text can wait for its end; a server that ends answers itself tells that by a piece."""
        sampling = call.sampling
        heard = call.stream or sampling.stop or sampling.logprobs or sampling.forced is not None
        return not heard and self._fitter is not None

    def _check_model(self, asked: str | None) -> None:
        if asked is None or asked == self._model.name or not self._strict:
            return
        served = {self._model.name, *self._loras.known()}
        if asked not in served and self._names.get(asked) not in served:
            raise errors.UnknownModel(
                f'model "{asked}" is not served here; this kernel serves "{self._model.name}"',
                fix=f'map it in aios.toml: [models] "{asked}" = "{self._model.name}", or set strict = false',
            )

    def _salt(self, program: Program) -> bytes:
        return self._salts(program.principal, program.group)

    def _sampling(self, asked: Sampling) -> SamplingParams:
        return resolve(asked, self._model.codec.defaults, self._forced(asked.forced))

    def _forced(self, text: str | None) -> tuple[int, ...]:
        if text is None:
            return ()
        codec = self._model.codec
        return (*codec.encode(text), min(codec.end_tokens))

    def _limit(self, sampling: Sampling, prompt: int, terms: Terms, lora: str | None) -> int:
        window, pool = self._model.codec.window, self._loras.room(lora)
        if prompt >= window:
            raise errors.ContextTooLong(
                f"the prompt has {prompt:,} tokens; the window of {self._model.name} is {window:,}",
                fix="shorten it, declare a strategy (window='drop_oldest_turns' or 'summarise'), or serve a model "
                "with a longer window: aios serve MODEL",
            )
        if prompt >= pool:
            raise errors.OutOfMemory(
                f"the prompt has {prompt:,} tokens; the KV pool holds {pool:,}{' beside the adapter' if lora else ''}",
                fix=f"aios serve --kv-tokens {2 * prompt}",
            )
        room = min(window, pool) - prompt
        if (allowed := terms.room(prompt)) is not None:
            room = min(room, allowed)
        if sampling.max_tokens is None or not self._model.engine.capabilities.step_control:
            return room  # an engine that decides over its own steps counts by itself
        return min(room, sampling.max_tokens)

    def _grammar(self, call: LlmChat) -> Grammar | None:
        if call.sampling.forced is not None:
            return None  # the text is given; a grammar could only contradict it
        return self._model.codec.grammar(call)


def _salt(key: bytes, principal: str, group: str) -> bytes:
    """What keeps the trust domain of a group apart in the prefix cache."""
    # The length keeps two names apart that run together otherwise: no caller chooses another one's domain.
    domain = f"{len(principal)}:{principal}{group}".encode(errors="surrogatepass")
    return hashlib.blake2b(domain, key=key, digest_size=16).digest()
