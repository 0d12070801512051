"""Our sampler in the place of vLLM's: it chooses, and leaves vLLM nothing but what it chose."""

from __future__ import annotations

from typing import Any, cast

from vllm.v1.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
    LogitsProcessor,
    MoveDirectionality,
)

from aios_kernel.engine.torch.sampler import choose
from aios_kernel.engine.vllm.inprocess.context import KEY


class KernelSampler(LogitsProcessor):  # pyright: ignore[reportUntypedBaseClass]
    """Chooses for the rows whose contexts emit a token in this step; every other token of the row is barred."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self._rows: dict[int, Any] = {}

    def is_argmax_invariant(self) -> bool:
        """No: it decides."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the requests through vLLM's batch."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, _, _ in batch_update.added:
            self._rows[row] = (params.extra_args or {}).get(KEY)
        for one, other, direction in batch_update.moved:
            moved, replaced = self._rows.pop(one, None), self._rows.pop(other, None)
            self._rows[other] = moved
            if direction is MoveDirectionality.SWAP:
                self._rows[one] = replaced

    def apply(self, logits: Any) -> Any:
        """Choose from float32 logits, [rows, vocab]."""
        rows = [row for row in range(len(logits)) if (context := self._rows.get(row)) is not None and context.emits]
        if not rows:
            return logits
        contexts = [self._rows[row] for row in rows]
        # The sampler reads of a context what VllmContext has, but is typed for the torch engine's own.
        choices = choose(logits[rows], cast("Any", contexts))
        for context, choice in zip(contexts, choices, strict=True):
            context.choice = choice
        logits[rows] = float("-inf")
        logits[rows, [choice.token for choice in choices]] = 0.0
        return logits
