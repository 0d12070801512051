"""Steps on a GPU: laid out in one array, and launched without waiting for anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aios_kernel.engine.torch.batch import Batch
from aios_kernel.engine.torch.layout import Layout
from aios_kernel.engine.torch.paged.graphs import CudaRecorder, DecodeGraphs, Recorder
from aios_kernel.engine.torch.paged.memory import PagedKvMemory
from aios_kernel.engine.torch.paged.plan import Inputs, Step, inputs_of, pack_step, upload
from aios_kernel.engine.torch.transfer import on

if TYPE_CHECKING:
    from aios_kernel.engine.torch.lora.table import Table
    from aios_kernel.engine.torch.runner import ModelRunner


class PagedForward:
    """Computes steps of contexts in a `PagedKvMemory`.

    Args:
        runner: has the model.
        memory: the pool.
        recorder: records decode steps; None: they are launched kernel by kernel.
    """

    def __init__(self, runner: ModelRunner, memory: PagedKvMemory, recorder: Recorder | None = None) -> None:
        self._runner = runner
        self._memory = memory
        self.graphs: DecodeGraphs | None = None
        if recorder is not None:
            self.graphs = DecodeGraphs(self.compute, recorder, memory.tiling, runner.vocab, runner.device)

    @classmethod
    def on(cls, runner: ModelRunner, memory: PagedKvMemory) -> PagedForward:
        """With CUDA graphs where there is a GPU."""
        recorder = CudaRecorder(runner.device) if runner.device.type == "cuda" else None
        return cls(runner, memory, recorder)

    def __call__(self, batch: Batch, n_singles: int, adapters: Table | None = None) -> Tensor:
        """Logits of the rows that want them, [wanted, vocab]; the work may still be under way.

        Args:
            batch: on the host, laid out as for the compiled attention.
            n_singles: contexts with one token.
            adapters: the rows' LoRA adapters; which they are differs from step to step, so no graph is recorded.
        """
        laid_out = batch.layout.plan
        assert laid_out is not None
        packed = pack_step(Step(batch.ids.numpy(), batch.rows.numpy(), n_singles, laid_out), self._memory.tiling)
        if self.graphs is not None and not batch.scoring and adapters is None:
            logits = self.graphs.run(packed)
            if logits is not None:
                return logits
        numbers = upload(packed.numbers, self._runner.device)
        return self.compute(inputs_of(numbers, packed.sizes, self._memory.tiling, packed), adapters)

    def chained(self, batch: Batch, tokens: Tensor, chain: Sequence[int]) -> Tensor | None:
        """Logits of a decode step whose tokens the step before is still choosing; None without a graph.

        Args:
            batch: on the host; its tokens do not count.
            tokens: of the step before, on the device.
            chain: which of them each row takes.
        """
        laid_out = batch.layout.plan
        if self.graphs is None or laid_out is None:
            return None
        step = Step(batch.ids.numpy(), batch.rows.numpy(), len(chain), laid_out)
        packed = pack_step(step, self._memory.tiling)
        return self.graphs.run(packed, tokens[on(self._runner.device, chain, np.int64)])

    def compute(self, inputs: Inputs, adapters: Table | None = None) -> Tensor:
        """One forward; see `ModelRunner.forward`."""
        layout = Layout(inputs.plan.slots, [], [], None, inputs.plan)
        logits = self._runner.forward(inputs.ids, inputs.positions, layout, self._memory, inputs.wanted, adapters)
        return logits.float()

    def warm_up(self, most: int) -> None:
        """Record the graphs of up to `most` rows now instead of in the steps that need them first."""
        if self.graphs is not None:
            with torch.inference_mode():
                self.graphs.warm_up(most)
