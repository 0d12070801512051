"""One thread that embeds for everybody: what waits at the same time goes through the model together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar, final

import numpy as np

from aios_kernel._batch import BatchThread
from aios_kernel.errors import AiosError, InternalError
from aios_kernel.memory.embedder import Embedder
from aios_kernel.memory.index import Vectors
from aios_kernel.memory.kept import KeptVectors

_MAX_JOBS = 256

T = TypeVar("T")

_log = logging.getLogger(__name__)


@final
class _Embed:
    """Texts to embed."""

    __slots__ = ("future", "texts")

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.future: Future[Vectors] = Future()


@final
class _Count:
    """Texts to count the tokens of."""

    __slots__ = ("future", "texts")

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.future: Future[int] = Future()


@final
class EmbeddingThread:
    """Owns the embedder; all vectors that come out have unit length. The last ones are kept, by their text's hash."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._kept = KeptVectors(self._made)
        self._thread: BatchThread[_Embed | _Count] = BatchThread(self._run, name="aios-embedder", max_items=_MAX_JOBS)

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Embed texts; shape [len(texts), dimensions]."""
        return await asyncio.wrap_future(self.submit(texts))

    def submit(self, texts: Sequence[str]) -> Future[Vectors]:
        """`embed` for callers without an event loop."""
        job, kept = _Embed(texts), self._kept.at_hand(texts)
        if kept is None:
            self._thread.put(job)
        else:  # without the way to the thread and back
            job.future.set_result(kept)
        return job.future

    async def count_tokens(self, texts: Sequence[str]) -> int:
        """Count the tokens of texts."""
        job = _Count(texts)
        self._thread.put(job)
        return await asyncio.wrap_future(job.future)

    def close(self) -> None:
        """Finish what waits and end the thread; blocks."""
        self._thread.close()

    def _run(self, batch: list[_Embed | _Count]) -> None:
        jobs = [job for job in batch if job.future.set_running_or_notify_cancel()]
        waiting = [job for job in jobs if isinstance(job, _Embed)]
        if not self._together(waiting):
            for job in waiting:
                self._answer(job.future, self._kept.of, job.texts)
        for job in jobs:
            if isinstance(job, _Count):
                self._answer(job.future, self._embedder.count_tokens, job.texts)

    def _together(self, jobs: list[_Embed]) -> bool:
        """Embed the texts of several jobs at once; False leaves each of them to be tried alone."""
        if len(jobs) < 2:
            return False
        try:
            vectors = self._kept.of([text for job in jobs for text in job.texts])
        except Exception:  # noqa: BLE001 - one bad text must not fail its neighbours
            _log.debug("embedding %d jobs together failed", len(jobs), exc_info=True)
            return False
        start = 0
        for job in jobs:
            job.future.set_result(vectors[start : start + len(job.texts)])
            start += len(job.texts)
        return True

    def _answer(self, future: Future[T], work: Callable[[list[str]], T], texts: list[str]) -> None:
        try:
            result = work(texts)
        except AiosError as error:
            future.set_exception(error)
        except Exception as error:  # noqa: BLE001 - the caller must get an answer whatever the model does
            _log.exception("the embedder failed")
            future.set_exception(InternalError(f"the embedder {self._embedder.name} failed: {error!r}"))
        else:
            future.set_result(result)

    def _made(self, texts: list[str]) -> Vectors:
        vectors = np.asarray(self._embedder.embed(texts), np.float32)
        squares: Any = np.einsum("ij,ij->i", vectors, vectors) if vectors.ndim == 2 else np.empty(0)
        if len(squares) != len(texts) or not np.isfinite(squares).all():
            raise InternalError(f"the embedder {self._embedder.name} gave bad vectors, shape {vectors.shape}")
        return vectors / np.maximum(np.sqrt(squares), 1e-12)[:, None]
