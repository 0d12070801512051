"""The packed input of one forward, assembled from what each context has to compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aios_kernel.engine.protocol import TokenScore
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.dense import DenseCache
from aios_kernel.engine.torch.layout import Chunk, Layout, decode_groups
from aios_kernel.engine.torch.prefix import BLOCK
from aios_kernel.engine.torch.sampler import Choice


@dataclass(slots=True)
class Work:
    """What one context does in a step: compute `n_tokens` from its first uncomputed one on."""

    context: TorchContext
    n_tokens: int
    row: int = 0
    """Packed row of its last token."""
    choice: Choice | None = None
    """The token that it emits, once the forward has run."""
    scores: list[TokenScore] = field(default_factory=list[TokenScore])
    """Of the prompt's tokens, if they are asked for."""

    @property
    def length(self) -> int:
        """Tokens of the context that have KV after the step."""
        return self.context.computed + self.n_tokens

    @property
    def finishes(self) -> bool:
        """Whether its last pending token is computed, so that a token is emitted."""
        return self.length == len(self.context.tokens)

    @property
    def scored(self) -> int:
        """How many of its tokens are followed by one of the prompt whose log-probability is asked for."""
        context = self.context
        if context.sampling.prompt_logprobs is None:
            return 0
        return max(0, min(self.length, context.prompt - 1) - context.computed)


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed tokens, their positions, where they live, and the rows whose logits are wanted."""

    ids: Tensor
    positions: Tensor
    layout: Layout
    rows: Tensor
    emitting: list[Work]
    """The works that emit a token, in the order of the first of `rows`."""
    scoring: list[Work]
    """The works whose prompt is scored; the rest of `rows` is theirs, each work's together."""


def pack(works: Sequence[Work], cache: DenseCache, device: torch.device) -> Batch:
    """Lay out the works, each with at least one token: single tokens first, the longest context leading.

    `cache` gives the gathered KV of contexts that decoded together in the last step already.
    """
    single = sorted((work for work in works if work.n_tokens == 1), key=lambda work: -work.context.n_blocks)
    cache.begin()
    chunks = [work for work in works if work.n_tokens > 1]
    ids = [work.context.tokens[work.context.computed] for work in single]
    positions = [np.array([work.context.computed for work in single], dtype=np.int64)]
    slots = [_single_slots(single, positions[0])]
    for row, work in enumerate(single):
        work.row = row
    laid_out: list[Chunk] = []
    for work in chunks:
        context, low = work.context, len(ids)
        ids += context.tokens[context.computed : work.length]
        work.row = len(ids) - 1
        span = np.arange(context.computed, work.length)
        positions.append(span)
        slots.append(context.table[span // BLOCK] * BLOCK + span % BLOCK)
        laid_out.append(Chunk(low, len(ids), context.computed, _tensor(context.table.copy(), device)))
    groups = decode_groups([work.context for work in single], [work.length for work in single], cache, device)
    emitting = [work for work in [*single, *chunks] if work.finishes]
    scoring = [work for work in [*single, *chunks] if work.scored]
    rows = [work.row for work in emitting]
    for work in scoring:
        first = work.row - work.n_tokens + 1
        rows += range(first, first + work.scored)
    return Batch(
        ids=torch.tensor(ids, device=device),
        positions=_tensor(np.concatenate(positions), device),
        layout=Layout(_tensor(np.concatenate(slots), device), groups, laid_out),
        rows=torch.tensor(rows, dtype=torch.long, device=device),
        emitting=emitting,
        scoring=scoring,
    )


def _single_slots(works: Sequence[Work], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    blocks = [work.context.table[-1] for work in works]
    return np.array(blocks, dtype=np.int64) * BLOCK + positions % BLOCK


def _tensor(array: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
