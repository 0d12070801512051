"""Keeps the vector index in step with the rows, behind the callers' backs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple, final

import numpy as np

from aios_kernel._batch import BatchThread
from aios_kernel._database import Database, Reader
from aios_kernel.errors import AiosError, InternalError
from aios_kernel.failpoints import failpoint
from aios_kernel.memory import outbox
from aios_kernel.memory.embedding import EmbeddingThread
from aios_kernel.memory.index import Hit, Space, Vector, VectorIndex
from aios_kernel.memory.outbox import Stored
from aios_kernel.memory.reading import vector_of
from aios_kernel.memory.recent import Recent

_LINGER_S = 1.0
_PORTION = 512

_log = logging.getLogger(__name__)


class _Prepare(NamedTuple):
    """Bring a space up to date and answer."""

    space: Space
    done: Future[None]


class _Wake:
    """Something changed."""


class _Settle(NamedTuple):
    """Answer when nothing is left to carry over."""

    done: Future[None]


@final
class Indexer:
    """One thread, the only one that changes the index; the first use opens it.

    A space is *open* once its index was checked against the rows in this process; until then nobody searches it. An
    index whose count disagrees is dropped and rebuilt.

    Args:
        path: the database's file.
        db: the database.
        embedding: embeds notes anew that another model embedded.
        make: opens the index.
        model: the name of the present model.
        revectored: told of notes that were embedded anew, after the commit, on the writer's thread.
    """

    def __init__(
        self,
        path: Path,
        db: Database,
        embedding: EmbeddingThread,
        make: Callable[[], VectorIndex],
        model: str,
        revectored: Callable[[Space, Mapping[str, Vector]], None],
    ) -> None:
        self._db = db
        self._reader = Reader(path, name="index")
        self._embedding = embedding
        self._make = make
        self._model = model
        self._revectored = revectored
        self._index: VectorIndex | None = None
        self._open: set[Space] = set()
        self._closing = False
        self.recent = Recent()
        self._thread: BatchThread[_Prepare | _Settle | _Wake] = BatchThread(
            self._run, name="aios-indexer", linger_s=_LINGER_S
        )

    def wake(self) -> None:
        """Say that notes changed; the index follows in about a second."""
        self._thread.put(_Wake())

    async def prepare(self, space: Space) -> None:
        """Return when the index of a space can be searched."""
        done: Future[None] = Future()
        self._thread.put(_Prepare(space, done), urgent=True)
        await asyncio.wrap_future(done)

    def settled(self) -> Future[None]:
        """Done when the index has taken over what was written before; a space that it fails on is left out."""
        done: Future[None] = Future()
        self._thread.put(_Settle(done), urgent=True)
        return done

    def is_open(self, space: Space) -> bool:
        """Whether the index of a space was checked and may be searched."""
        return space in self._open

    def search(self, space: Space, vector: Vector, k: int, allowed: set[str] | None) -> list[Hit]:
        """Search what the index has of a space; nothing while the space is not open."""
        if self._index is None or space not in self._open:
            return []
        return self._index.search(space, vector, k, allowed)

    def unsettle(self, space: Space) -> None:
        """Say that a space changed in ways that `recent` does not tell: it is not open until the index has followed."""
        self._open.discard(space)
        self.wake()

    def close(self) -> None:
        """Carry over what is open and close the index; blocks."""
        self._closing = True
        self._thread.close()
        if self._index is not None:
            self._index.close()
        self._reader.close()

    def _run(self, batch: list[_Prepare | _Settle | _Wake]) -> None:
        for item in batch:
            if isinstance(item, _Prepare) and item.done.set_running_or_notify_cancel():
                error = self._try_sync(item.space)
                item.done.set_exception(error) if error else item.done.set_result(None)
        # At the end the outbox keeps what is open: opening an index only to close it would cost a second.
        failed = None if self._closing and self._index is None else self._try_sync_all()
        for item in batch:
            if isinstance(item, _Settle) and item.done.set_running_or_notify_cancel():
                item.done.set_exception(failed) if failed else item.done.set_result(None)

    def _try_sync_all(self) -> AiosError | None:
        """Carry over what is open; gives why it cannot even be seen what is, if so."""
        try:
            waiting = self._reader.view(outbox.spaces_waiting)
        except AiosError as error:
            return error
        for space in waiting:
            self._try_sync(space)
        return None

    def _try_sync(self, space: Space) -> AiosError | None:
        try:
            self._sync(space)
        except AiosError as error:
            _log.error("the vector index of %s/%s lags behind: %s", *space, error)
            return error
        except Exception as error:  # noqa: BLE001 - whoever waits must get an answer; the outbox keeps what is open
            _log.exception("the vector index of %s/%s lags behind", *space)
            return InternalError(f"the vector index failed: {error!r}")
        return None

    def _sync(self, space: Space) -> None:
        index = self._opened()
        last, more, total = 0, True, 0
        while more:
            after = last
            work = self._reader.view(lambda db, after=after: outbox.pending(db, space, after, _PORTION))
            failpoint("memory.before_index")
            index.delete(space, work.gone)
            self._add(index, space, work.stored)
            failpoint("memory.indexed")
            last, more, total = work.last, work.more, work.total
            if last > after:
                self._db.submit(lambda db, last=last: outbox.cross_out(db, space, last)).result()
                failpoint("memory.crossed_out")
        if space not in self._open:
            if index.count(space) != total:
                self._rebuild(index, space)
            self._open.add(space)
        # Only now: a search that no longer sees these changes in `recent` finds the space open.
        self.recent.settle(space, last)

    def _rebuild(self, index: VectorIndex, space: Space) -> None:
        level = logging.WARNING if index.count(space) else logging.INFO
        _log.log(level, "rebuilding the vector index of %s/%s", *space)
        index.drop(space)
        after = 0
        while True:
            start = after
            stored, after = self._reader.view(lambda db, start=start: outbox.portion(db, space, start, _PORTION))
            if not stored:
                return
            self._add(index, space, stored)

    def _add(self, index: VectorIndex, space: Space, stored: list[Stored]) -> None:
        foreign = [note for note in stored if note.model != self._model]
        if foreign:
            stored = [note for note in stored if note.model == self._model] + self._embed_anew(space, foreign)
        if stored:
            index.add(space, [note.id for note in stored], np.stack([vector_of(note.blob) for note in stored]))

    def _embed_anew(self, space: Space, foreign: list[Stored]) -> list[Stored]:
        vectors = self._embedding.submit([note.text for note in foreign]).result()
        made = [(note.id, note.text, vector.tobytes()) for note, vector in zip(foreign, vectors, strict=True)]
        by_id = {id: vector_of(blob) for id, _, blob in made}
        self._db.submit(
            lambda db: outbox.store_vectors(db, space, self._model, made),
            committed=lambda taken: self._revectored(space, {id: by_id[id] for id in taken}),
        ).result()
        return [Stored(id, text, self._model, blob) for id, text, blob in made]

    def _opened(self) -> VectorIndex:
        if self._index is None:
            self._index = self._make()
        return self._index
