"""The packed input of one forward, assembled from what each context has to compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.dense import DenseCache
from aios_kernel.engine.torch.layout import Chunk, Layout, decode_groups
from aios_kernel.engine.torch.prefix import BLOCK


@dataclass(slots=True)
class Work:
    """What one context does in a step: compute `n_tokens` from its first uncomputed one on."""

    context: TorchContext
    n_tokens: int
    row: int = 0
    """Packed row of its last token."""

    @property
    def length(self) -> int:
        """Tokens of the context that have KV after the step."""
        return self.context.computed + self.n_tokens

    @property
    def finishes(self) -> bool:
        """Whether its last pending token is computed, so that a token is emitted."""
        return self.length == len(self.context.tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed tokens, their positions, where they live, and the rows whose logits are wanted."""

    ids: Tensor
    positions: Tensor
    layout: Layout
    rows: Tensor
    emitting: list[Work]
    """The works whose logits are wanted, in the order of `rows`."""


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
    return Batch(
        ids=torch.tensor(ids, device=device),
        positions=_tensor(np.concatenate(positions), device),
        layout=Layout(_tensor(np.concatenate(slots), device), groups, laid_out),
        rows=torch.tensor([work.row for work in emitting], dtype=torch.long, device=device),
        emitting=emitting,
    )


def _single_slots(works: Sequence[Work], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    blocks = [work.context.table[-1] for work in works]
    return np.array(blocks, dtype=np.int64) * BLOCK + positions % BLOCK


def _tensor(array: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
