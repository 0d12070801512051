"""What a step computes of each context, cut into the batches that llama.cpp takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aios_kernel.engine.llamacpp.context import LlamaContext
from aios_kernel.engine.llamacpp.runner import WANTED, Run
from aios_kernel.engine.protocol import TokenScore

SCORED = 256
"""Tokens of a prompt whose log-probabilities are wanted in one step: each takes a row as wide as the vocabulary."""


@dataclass(slots=True)
class Work:
    """Of one context.

    Attributes:
        context: whose tokens.
        n_tokens: to compute.
        rows: logits of the tokens that are wanted, as they come: those to score, then the last if it emits.
        scores: of the prompt's tokens.
        error: why it could not be computed.
    """

    context: LlamaContext
    n_tokens: int
    rows: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])
    scores: list[TokenScore] = field(default_factory=list[TokenScore])
    error: str | None = None

    @property
    def emits(self) -> bool:
        """Whether its last pending token is computed."""
        return self.n_tokens == self.context.pending

    @property
    def scored(self) -> int:
        """How many of its tokens tell the log-probability of a prompt token behind them."""
        context = self.context
        return max(0, min(self.n_tokens, context.prompt - 1 - context.computed)) if context.wants_prompt else 0

    def run(self, begin: int, end: int) -> Run:
        """Some of its tokens; places count from its first pending one."""
        context = self.context
        wanted = [place - begin for place in range(begin, min(end, self.scored))]
        if self.emits and end == self.n_tokens and end > self.scored:
            wanted.append(end - 1 - begin)
        start = context.computed + begin
        return Run(context.sequence, start, context.tokens[start : context.computed + end], wanted)


Part = tuple[Work, int, int]
"""A work and which of its tokens."""


def batches(works: Sequence[Work], most: int) -> Iterator[list[Part]]:
    """The works cut into batches of at most `most` tokens, and `WANTED` wanted ones, each of one adapter."""
    for lora in dict.fromkeys(work.context.lora for work in works):
        batch, room, wanted = list[Part](), most, WANTED
        for work in works:
            begin = 0
            while work.context.lora == lora and begin < work.n_tokens:
                end = min(work.n_tokens, begin + room)
                if begin < work.scored:
                    end = min(end, begin + wanted)
                batch.append((work, begin, end))
                room, wanted = room - (end - begin), wanted - len(work.run(begin, end).wanted)
                begin = end
                if room == 0 or wanted == 0:
                    yield batch
                    batch, room, wanted = [], most, WANTED
        if batch:
            yield batch
