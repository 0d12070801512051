"""The packed input of one forward, assembled from what each context has to compute."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aios_kernel.engine.protocol import TokenScore
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.decoding import DecodingRows
from aios_kernel.engine.torch.dense import DenseCache
from aios_kernel.engine.torch.layout import Chunk, Layout, decode_groups
from aios_kernel.engine.torch.native.plan import plan
from aios_kernel.engine.torch.prefix import BLOCK
from aios_kernel.engine.torch.sampler import Choice


class Work(msgspec.Struct):
    """What one context does in a step: compute `n_tokens` from its first uncomputed one on."""

    context: TorchContext
    n_tokens: int
    row: int = 0
    """Packed row of its last token."""
    choice: Choice | None = None
    """What it emits, once the forward has run."""
    token: int = -1
    """The same where it is the model's first choice and nothing more is to be told; `choice` is None then."""
    scores: list[TokenScore] = []
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
    works: list[Work]
    """All works, in the order of their tokens."""


def pack(
    works: Sequence[Work], cache: DenseCache | None, device: torch.device, last: DecodingRows | None = None
) -> Batch:
    """Lay out the works, each with at least one token: single tokens first.

    Args:
        works: what each context computes.
        cache: gives the gathered KV of contexts that decoded together in the last step already; None: the compiled
            attention runs, which reads the blocks themselves.
        device: of the model.
        last: what the last step has left of its layout, for steps of the compiled attention in which all decode.
    """
    if last is not None and cache is None:
        if all(work.n_tokens == 1 == len(work.context.tokens) - work.context.computed for work in works):
            return _pack_decoding(works, last)
        last.forget()
    single = [work for work in works if work.n_tokens == 1]
    # With copies the longest context leads; without, those that begin alike are neighbours.
    single.sort(key=lambda work: -work.context.n_blocks if cache else work.context.head)
    chunks = [work for work in works if work.n_tokens > 1]
    ids = [work.context.tokens[work.context.computed] for work in single]
    positions = [np.array([work.context.computed for work in single], dtype=np.int64)]
    slots = [_single_slots(single, positions[0])]
    for row, work in enumerate(single):
        work.row = row
    for work in chunks:
        context = work.context
        ids += context.tokens[context.computed : work.length]
        work.row = len(ids) - 1
        span = np.arange(context.computed, work.length)
        positions.append(span)
        slots.append(context.table[span // BLOCK] * BLOCK + span % BLOCK)
    packed = [*single, *chunks]
    emitting = [work for work in packed if work.finishes]
    scoring = [work for work in packed if work.context.sampling.prompt_logprobs is not None and work.scored]
    rows = [work.row for work in emitting]
    for work in scoring:
        first = work.row - work.n_tokens + 1
        rows += range(first, first + work.scored)
    where = np.concatenate(positions)
    return Batch(
        ids=_tensor(np.array(ids), device),
        positions=_tensor(where, device),
        layout=_layout(single, chunks, np.concatenate(slots), where, cache, device),
        rows=_tensor(np.array(rows, dtype=np.int64), device),
        emitting=emitting,
        scoring=scoring,
        works=packed,
    )


def _pack_decoding(works: Sequence[Work], last: DecodingRows) -> Batch:
    """Every context computes its last token, behind the prompt, on the CPU."""
    ids, plan = last.lay([work.context for work in works])
    rows = [works[place] for place in last.order]
    return Batch(
        ids=torch.from_numpy(np.array(ids)),
        positions=torch.from_numpy(plan.positions),
        layout=Layout(torch.from_numpy(plan.slots), [], [], plan),
        rows=_first(len(rows)),
        emitting=rows,
        scoring=[],
        works=rows,
    )


@functools.lru_cache(maxsize=512)
def _first(n: int) -> Tensor:
    return torch.arange(n)


def _layout(
    single: Sequence[Work],
    chunks: Sequence[Work],
    slots: NDArray[np.int64],
    positions: NDArray[np.int64],
    cache: DenseCache | None,
    device: torch.device,
) -> Layout:
    at = _tensor(slots, device)
    if cache is None:
        tables = [work.context.table for work in single]
        return Layout(at, [], [], plan(tables, [(w.n_tokens, w.context.table) for w in chunks], slots, positions))
    cache.begin()
    groups = decode_groups([work.context for work in single], [work.length for work in single], cache, device)
    laid_out = [
        Chunk(
            work.row - work.n_tokens + 1,
            work.row + 1,
            work.context.computed,
            _tensor(work.context.table.copy(), device),
        )
        for work in chunks
    ]
    return Layout(at, groups, laid_out)


def _single_slots(works: Sequence[Work], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    blocks = [work.context.tail for work in works]
    return np.array(blocks, dtype=np.int64) * BLOCK + positions % BLOCK


def _tensor(array: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
