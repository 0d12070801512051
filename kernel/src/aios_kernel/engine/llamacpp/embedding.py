"""Vectors of texts from the loaded model: the mean of its last hidden states, of unit length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from aios_kernel.engine.llamacpp.model import LlamaModel
from aios_kernel.engine.llamacpp.runner import WANTED, LlamaRunner, Run, Sizes
from aios_kernel.errors import EngineError

_TOGETHER = 32
"""Texts of one forward."""


class LlamaEmbedder:
    """Runs texts in a context of llama.cpp of its own, so that those of the answers stay as they are.

    Args:
        model: the weights.
        sizes: of the engine's own context.
    """

    def __init__(self, model: LlamaModel, sizes: Sizes) -> None:
        self._model, self._threads, self._kind = model, sizes.threads, sizes.kind
        self._step = min(sizes.step, WANTED)
        self._runner: LlamaRunner | None = None

    def run(self, texts: Sequence[Sequence[int]]) -> Iterator[list[list[float]]]:
        """See `Engine.embed`. Raises EngineError for hidden states that are not finite."""
        for group in self._groups(texts):
            if len(group[0]) > self._step:
                yield from self._long(group[0])
            else:
                yield self._short(group)

    def close(self) -> None:
        """Free its context."""
        if self._runner is not None:
            self._runner.close()
        self._runner = None

    def _groups(self, texts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        """Neighbours that fit one forward together; a text that fits none stays alone."""
        group: list[Sequence[int]] = []
        for tokens in texts:
            if group and (len(group) == _TOGETHER or sum(map(len, group)) + len(tokens) > self._step):
                yield group
                group = []
            group.append(tokens)
        if group:
            yield group

    def _short(self, group: list[Sequence[int]]) -> list[list[float]]:
        if self._runner is None:
            self._runner = self._new(self._step)
        self._runner.clear()
        runs = [Run(row, 0, tokens, range(len(tokens))) for row, tokens in enumerate(group)]
        states = self._runner.compute(runs)
        ends = np.cumsum([len(tokens) for tokens in group])[:-1]
        return [_unit(part.sum(axis=0)) for part in np.split(states, ends)]

    def _long(self, tokens: Sequence[int]) -> Iterator[list[list[float]]]:
        """One text in several forwards; its context is its own, as other texts may come between them."""
        with closing(self._new(len(tokens))) as runner:
            total: NDArray[np.float32] | float = 0.0
            for start in range(0, len(tokens), self._step):
                part = tokens[start : start + self._step]
                total = total + runner.compute([Run(0, start, part, range(len(part)))]).sum(axis=0)
                if start + len(part) < len(tokens):
                    yield []
        yield [_unit(np.asarray(total))]

    def _new(self, n_tokens: int) -> LlamaRunner:
        sizes = Sizes(n_tokens, _TOGETHER, self._step, self._threads, self._kind, embeddings=True)
        return LlamaRunner(self._model, sizes)


def _unit(vector: NDArray[np.float32]) -> list[float]:
    wide = vector.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    if not np.isfinite(norm):
        raise EngineError(
            "the hidden states of a text are not finite", fix="embed other texts, or choose another model"
        )
    return (wide / max(norm, 1e-30)).tolist()
