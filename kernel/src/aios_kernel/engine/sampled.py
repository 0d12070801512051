"""What our sampler asks of a context of another library's engine."""

from __future__ import annotations

from aios_kernel.engine.protocol import Grammar, SamplingParams


class Sampled:
    """A context whose tokens our sampler chooses.

    Attributes:
        tokens: prompt and answer.
        sampling: of its answer.
        grammar: of its answer.
        computed: how many of the tokens have KV.
    """

    tokens: list[int]
    sampling: SamplingParams
    grammar: Grammar | None
    computed: int

    @property
    def pending(self) -> int:
        """Tokens not computed yet."""
        return len(self.tokens) - self.computed

    @property
    def greedy(self) -> bool:
        """Whether its sampling asks for the model's first choice and nothing else."""
        return self.sampling.plain

    @property
    def plain(self) -> bool:
        """Whether its token is the model's own first choice, and nothing else is to be told."""
        return self.greedy and self.grammar is None

    @property
    def sampled_by_grammar(self) -> bool:
        """Whether all that its grammar allows must be known, whatever the model's first choice is."""
        sampling = self.sampling
        return self.grammar is not None and bool(sampling.temperature or sampling.forced or sampling.margin)
