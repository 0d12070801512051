"""A sequence on vLLM in process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aios_kernel.engine.protocol import Grammar, SamplingParams
from aios_kernel.engine.sampled import Sampled

KEY = "aios_context"
"""Where in the `extra_args` of a request of vLLM its context stands."""


@dataclass(slots=True, eq=False)
class VllmContext(Sampled):
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
        request: vLLM's request for it; None: it has none yet, or it ended with what was appended since.
        entered: vLLM was told of that request.
        stored: its KV on the host, until vLLM has taken it back.
        emits: whether it emits a token in the step that runs.
        choice: what the sampler chose for it in that step.
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
    request: Any = None
    entered: bool = False
    stored: Any = None
    emits: bool = False
    choice: Any = None
    closed: bool = False

    @classmethod
    def of(
        cls, tokens: Sequence[int], sampling: SamplingParams, grammar: Grammar | None, lora: str | None, salt: bytes
    ) -> VllmContext:
        """A context of a prompt, nothing of it computed."""
        return cls([*tokens], sampling, grammar, lora, salt, prompt=len(tokens))

    def twin(self) -> VllmContext:
        """A context in the same state, without a request."""
        grammar = self.grammar.fork() if self.grammar is not None else None
        twin = VllmContext.of(self.tokens, self.sampling, grammar, self.lora, self.salt)
        for name in ("prompt", "computed", "cached", "emitted"):
            setattr(twin, name, getattr(self, name))
        return twin
