"""Decode steps as CUDA graphs: one launch for the whole model, whatever the contexts' lengths.

A graph repeats the kernels that were recorded, on the memory they were recorded on. So a step's numbers are copied
into one array that all graphs read, in sections of the sizes of a bucket; the rows that are left over write nowhere and
see nothing. How the kernels split their work follows from these sizes alone, and what it depends on else (lengths,
tables, shared prefixes) they read when they run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from aios_kernel.engine.torch.paged.plan import Inputs, Packed, Sizes, Tiling, inputs_of, padded, pinned

_log = logging.getLogger(__name__)
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
"""Rows that graphs are made for; a step takes the next larger one."""
TABLE_ENTRIES = 1 << 18
"""Blocks in all tables of a step: 4 million tokens; a step with more runs without a graph."""

Forward = Callable[[Inputs], Tensor]
"""Computes a forward and gives its logits; reads nothing that changes but the inputs and the pool."""
Replay = Callable[[], None]


class Recorder(Protocol):
    """Records what a function does on the device."""

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        """Record `work`; give the memory of its result and what does the work again, into that memory.

        Raises RuntimeError for work that cannot be recorded, such as work that waits for the device.
        """
        ...


class CudaRecorder:
    """See `Recorder`. All graphs share one pool of memory, since only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        """See `Recorder`. The work is done twice before: kernels are compiled and libraries set up then."""
        beside = torch.cuda.Stream(self._device)
        beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(beside):
            for _ in range(2):
                work()
        torch.cuda.current_stream(self._device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # The threads that copy KV go on meanwhile; what they ask of the device is none of the graph's business.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = work()
        return result, graph.replay


class _Graph(NamedTuple):
    result: Tensor
    replay: Replay


class DecodeGraphs:
    """Runs decode steps by graphs, which are recorded at their first use.

    Args:
        forward: of the model.
        recorder: records it.
        tiling: of the kernels.
        vocab: width of the logits.
        device: of the model.
        buckets: numbers of rows, rising.
    """

    def __init__(
        self,
        forward: Forward,
        recorder: Recorder,
        tiling: Tiling,
        vocab: int,
        device: torch.device,
        buckets: tuple[int, ...] = BUCKETS,
    ) -> None:
        self._forward = forward
        self._record = recorder
        self._tiling = tiling
        self._device = device
        self._buckets = buckets
        self._graphs: dict[Sizes, _Graph] = {}
        self._broken = False
        most = buckets[-1]
        largest = Sizes(most, most, tiling.most_units(most), 0, most)
        self._numbers = torch.zeros(largest.header + TABLE_ENTRIES, dtype=torch.int64, device=device)
        # One for all: a graph's own result would keep its memory, a gigabyte over all buckets of a large vocabulary.
        self._logits = torch.zeros(most, vocab, dtype=torch.float32, device=device)

    @property
    def recorded(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def run(self, packed: Packed, ids: Tensor | None = None) -> Tensor | None:
        """Logits of a decode step, [wanted, vocab], valid until the next one; None: it has to run without a graph.

        `ids` are its tokens where only the device knows them yet.
        """
        sizes = self._sizes(packed)
        if sizes is None:
            return None
        graph = self._graphs.get(sizes) or self._make(sizes)
        if graph is None:
            return None
        numbers = pinned(padded(packed, sizes), self._device)
        self._numbers[: len(numbers)].copy_(numbers, non_blocking=True)
        if ids is not None:
            self._numbers[: len(ids)].copy_(ids)
        graph.replay()
        return graph.result[: packed.sizes.wanted]

    def warm_up(self, most: int) -> None:
        """Record the graphs of steps with up to so many rows, with and without shared prefixes, the largest first."""
        for rows in reversed([rows for rows in self._buckets if rows <= most]):
            for units in (0, self._tiling.most_units(rows)) if rows > 1 else (0,):
                sizes = Sizes(rows, rows, units, 0, rows)
                if sizes not in self._graphs:
                    self._make(sizes)

    def _sizes(self, packed: Packed) -> Sizes | None:
        """Of the graph that can run a step."""
        sizes = packed.sizes
        tables = len(packed.numbers) - sizes.header
        if self._broken or sizes.pieces or sizes.wanted > sizes.rows or tables > TABLE_ENTRIES:
            return None
        rows = next((rows for rows in self._buckets if rows >= sizes.rows), None)
        if rows is None:
            return None
        units = self._tiling.most_units(rows) if sizes.units else 0
        return Sizes(rows, rows, units, 0, rows)

    def _make(self, sizes: Sizes) -> _Graph | None:
        inputs = inputs_of(self._numbers[: sizes.header + TABLE_ENTRIES], sizes, self._tiling)
        self._numbers.zero_()  # every row is padding: it has no length, and no unit has rows
        inputs.plan.slots.fill_(-1)
        try:
            out = self._logits[: sizes.wanted]
            result, replay = self._record(lambda: out.copy_(self._forward(inputs)))
        except RuntimeError as error:
            _log.warning("decode steps run without CUDA graphs: %s", error)
            self._broken = True
            return None
        graph = self._graphs[sizes] = _Graph(result, replay)
        _log.debug("recorded a CUDA graph of %d rows and %d shared prefixes", sizes.rows, sizes.units)
        return graph
