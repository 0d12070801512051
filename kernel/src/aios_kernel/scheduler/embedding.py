"""Texts to embed with the served model: one forward between two steps, so that running contexts go on."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from aios_kernel import errors
from aios_kernel.engine.protocol import Engine

_log = logging.getLogger(__name__)
Vectors: TypeAlias = list[list[float]]


@dataclass(slots=True)
class _Job:
    work: Iterator[Vectors]
    future: Future[Vectors]
    vectors: Vectors = field(default_factory=list[list[float]])


class EmbedQueue:
    """Jobs in turn, a forward each. Used by the dispatcher's thread."""

    def __init__(self, engine: Engine[Any, Any]) -> None:
        self._engine = engine
        self._jobs: deque[_Job] = deque()

    def __bool__(self) -> bool:
        """Whether there is something to do."""
        return bool(self._jobs)

    def put(self, texts: Sequence[Sequence[int]], future: Future[Vectors]) -> None:
        """Queue texts; `future` gets their vectors, or the error."""
        try:
            self._jobs.append(_Job(self._engine.embed(texts), future))
        except Exception as error:  # noqa: BLE001 - texts that the engine refuses fail alone
            _end(future, error)

    def advance(self) -> None:
        """Compute one forward of the job whose turn it is."""
        if not self._jobs:
            return
        job = self._jobs.popleft()
        if job.future.cancelled():
            return
        try:
            job.vectors += next(job.work)
        except StopIteration:
            _end(job.future, job.vectors)
        except Exception as error:  # noqa: BLE001 - whatever a forward raises ends this job, not the thread
            _log.exception("texts could not be embedded")
            _end(job.future, error)
        else:
            self._jobs.append(job)

    def fail_all(self, error: errors.AiosError) -> None:
        """End what waits with an error."""
        while self._jobs:
            _end(self._jobs.popleft().future, error)


def _end(future: Future[Vectors], outcome: Vectors | Exception) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, errors.AiosError):
        future.set_exception(outcome)
    elif isinstance(outcome, Exception):
        what = f"the engine failed to embed: {type(outcome).__name__}: {outcome}"
        future.set_exception(errors.EngineError(what, fix="aios doctor"))
    else:
        future.set_result(outcome)
