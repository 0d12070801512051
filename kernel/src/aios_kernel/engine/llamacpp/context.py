"""A sequence on the llamacpp engine: its tokens, its cells and the state of its sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aios_kernel.engine.protocol import Grammar, SamplingParams
from aios_kernel.engine.sampled import Sampled

NONE = -1


@dataclass(slots=True, eq=False)
class LlamaContext(Sampled):
    """See `aios_kernel.engine.protocol.Context`.

    Attributes:
        tokens: prompt and answer.
        sampling: of its answer.
        grammar: of its answer.
        lora: name of its adapter.
        salt: of its trust domain.
        prompt: how many of the tokens are the prompt.
        computed: how many of them have KV.
        cached: prompt tokens that came from the prefix cache.
        emitted: tokens emitted so far; the index into `sampling.forced` and the counter of the random numbers.
        sequence: its number at llama.cpp; `NONE`: it has none yet.
        cells: of the KV buffer, one a computed token.
        poisoned: its KV is not to be trusted (its logits were not finite).
        closed: it was released.
    """

    tokens: list[int]
    sampling: SamplingParams
    grammar: Grammar | None = None
    lora: str | None = None
    salt: bytes = b""
    prompt: int = 0
    computed: int = 0
    cached: int = 0
    emitted: int = 0
    sequence: int = NONE
    cells: list[int] = field(default_factory=list[int])
    poisoned: bool = False
    closed: bool = False

    @classmethod
    def of(
        cls, tokens: Sequence[int], sampling: SamplingParams, grammar: Grammar | None, lora: str | None, salt: bytes
    ) -> LlamaContext:
        """A context of a prompt, nothing of it computed."""
        return cls([*tokens], sampling, grammar, lora, salt, prompt=len(tokens))

    @property
    def wants_prompt(self) -> bool:
        """Whether log-probabilities of prompt tokens are still due, so that each of them must be computed."""
        return self.sampling.prompt_logprobs is not None and self.computed < self.prompt

    def twin(self) -> LlamaContext:
        """A context in the same state, without sequence and cells."""
        grammar = self.grammar.fork() if self.grammar is not None else None
        twin = LlamaContext.of(self.tokens, self.sampling, grammar, self.lora, self.salt)
        for name in ("prompt", "computed", "cached", "emitted", "poisoned"):
            setattr(twin, name, getattr(self, name))
        return twin
