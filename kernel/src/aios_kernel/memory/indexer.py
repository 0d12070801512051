"""Keeps the vector index in step with the rows, behind the callers' backs."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple, final

import apsw
import numpy as np

from aios_kernel._batch import BatchThread
from aios_kernel._database import Database, Reader
from aios_kernel.errors import AiosError, Cancelled, InternalError
from aios_kernel.failpoints import failpoint
from aios_kernel.memory import outbox
from aios_kernel.memory.embedding import EmbeddingThread
from aios_kernel.memory.index import Hit, Space, Vector, VectorIndex
from aios_kernel.memory.outbox import Stored
from aios_kernel.memory.reading import vector_of
from aios_kernel.memory.recent import Recent

_LINGER_S = 1.0
_PORTION = 2000

_log = logging.getLogger(__name__)


class _Prepare(NamedTuple):
    """Bring a space up to date and answer."""

    space: Space
    done: Future[None]


class _Wake:
    """Something changed."""


class _Look(NamedTuple):
    """See whether a space has outgrown the limit up to which it is not in the index."""

    space: Space


class _Settle(NamedTuple):
    """Answer when nothing is left to carry over."""

    done: Future[None]


@final
class Indexer:
    """One thread, the only one that changes the index; the first use opens it.

    Small spaces are not in the index; one that outgrows them is built into it from its rows, and stays. A space is
    *open* once its index was checked against the rows in this process; until then nobody searches it. An index whose
    count disagrees is dropped and rebuilt.

    Args:
        path: the database's file.
        db: the database.
        embedding: embeds notes anew that another model embedded.
        make: opens the index.
        model: the name of the present model.
        revectored: told of notes that were embedded anew, after the commit, on the writer's thread.
        index_from: spaces with more vectors are in the index.
    """

    def __init__(
        self,
        path: Path,
        db: Database,
        embedding: EmbeddingThread,
        make: Callable[[], VectorIndex],
        model: str,
        revectored: Callable[[Space, Mapping[str, Vector]], None],
        *,
        index_from: int,
    ) -> None:
        self._db = db
        self._reader = Reader(path, name="index")
        self._embedding = embedding
        self._make = make
        self._model = model
        self._revectored = revectored
        self._index: VectorIndex | None = None
        self._open: set[Space] = set()
        self._index_from = index_from
        self._look_every = max(1, min(1000, index_from // 10))
        self._grown: Counter[Space] = Counter()  # on the writer's thread
        self._looked = False
        self._closing = False
        self.recent = Recent()
        self._thread: BatchThread[_Prepare | _Settle | _Wake | _Look] = BatchThread(
            self._run, name="aios-indexer", linger_s=_LINGER_S
        )

    def wake(self) -> None:
        """Say that notes changed; the index follows in about a second."""
        self._thread.put(_Wake())

    def grown(self, space: Space) -> None:
        """Say that a note was added to a space that is not in the index; on the writer's thread."""
        self._grown[space] += 1
        if self._grown[space] >= self._look_every:
            del self._grown[space]
            self._thread.put(_Look(space))

    async def prepare(self, space: Space) -> None:
        """Return when the index of a space can be searched; a small one is built into it."""
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
        """Carry over what is open, if it is little, and close the index; blocks."""
        self._closing = True
        self._thread.close()
        if self._index is not None:
            self._index.close()
        self._reader.close()

    def _run(self, batch: list[_Prepare | _Settle | _Wake | _Look]) -> None:
        for item in batch:
            if isinstance(item, _Prepare) and item.done.set_running_or_notify_cancel():
                error = self._try(item.space, self._build)
                item.done.set_exception(error) if error else item.done.set_result(None)
        # At the end the outbox keeps what is open: opening an index only to close it would cost a second.
        failed = None
        if not (self._closing and self._index is None):
            failed = self._try_all({item.space for item in batch if isinstance(item, _Look)})
        for item in batch:
            if isinstance(item, _Settle) and item.done.set_running_or_notify_cancel():
                item.done.set_exception(failed) if failed else item.done.set_result(None)

    def _try_all(self, grown: Collection[Space]) -> AiosError | None:
        """Carry over what is open; gives why it cannot even be seen what is, if so."""
        try:
            for space in self._reader.view(lambda db: self._outgrown(db, grown)):
                self._try(space, self._build)
            waiting = self._reader.view(outbox.spaces_waiting)
        except AiosError as error:
            return error
        for space in waiting:
            self._try(space, self._sync)
        return None

    def _outgrown(self, db: apsw.Connection, grown: Collection[Space]) -> list[Space]:
        if not self._looked:  # once a process: it looks at every note
            found = outbox.outgrown(db, self._index_from)
            self._looked = True
            return found
        return [space for space in grown if outbox.has_outgrown(db, space, self._index_from)]

    def _try(self, space: Space, work: Callable[[Space], None]) -> AiosError | None:
        try:
            work(space)
        except AiosError as error:
            level = logging.INFO if isinstance(error, Cancelled) else logging.ERROR
            _log.log(level, "the vector index of %s/%s lags behind: %s", *space, error)
            return error
        except Exception as error:  # noqa: BLE001 - whoever waits must get an answer; the outbox keeps what is open
            _log.exception("the vector index of %s/%s lags behind", *space)
            return InternalError(f"the vector index failed: {error!r}")
        return None

    def _build(self, space: Space) -> None:
        """Let the index follow a space from now on."""
        if not self._reader.view(lambda db: outbox.is_indexed(db, space)):
            self._begin_anew(space)
        self._sync(space)

    def _begin_anew(self, space: Space) -> None:
        # Dropped first: lines that nothing was dropped for would be carried over to what is there already.
        self._opened().drop(space)
        failpoint("memory.dropped")
        self._db.submit(lambda db: outbox.queue_all(db, space)).result()
        failpoint("memory.queued")

    def _sync(self, space: Space) -> None:
        indexed = self._reader.view(lambda db: outbox.is_indexed(db, space))
        index = self._opened() if indexed else None
        last, total = self._carry(space, index)
        if index is not None and space not in self._open:
            if (count := index.count(space)) != total:
                _log.log(logging.WARNING if count else logging.INFO, "rebuilding the vector index of %s/%s", *space)
                self._begin_anew(space)
                again, _ = self._carry(space, index)
                last = max(last, again)
            self._open.add(space)
        # Only now: a search that no longer sees these changes in `recent` finds the space open.
        self.recent.settle(space, last)

    def _carry(self, space: Space, index: VectorIndex | None) -> tuple[int, int]:
        """Do what the lines of a space ask for; gives the last one, and how many vectors the space has at that time."""
        last = 0
        while True:
            after = last
            work = self._reader.view(lambda db, after=after: outbox.pending(db, space, after, _PORTION))
            failpoint("memory.before_index")
            stored = self._embedded(space, work.stored)
            if index is not None:
                index.delete(space, work.gone)
                if stored:
                    vectors = np.stack([vector_of(note.blob) for note in stored])
                    index.add(space, [note.id for note in stored], vectors)
            failpoint("memory.indexed")
            last = work.last
            if last > after:
                self._db.submit(lambda db, last=last: outbox.cross_out(db, space, last)).result()
                failpoint("memory.crossed_out")
            if not work.more:
                return last, work.total
            if self._closing:
                raise Cancelled("the kernel is shutting down; the outbox keeps what is open")

    def _embedded(self, space: Space, stored: list[Stored]) -> list[Stored]:
        foreign = [note for note in stored if note.model != self._model]
        if not foreign:
            return stored
        return [note for note in stored if note.model == self._model] + self._embed_anew(space, foreign)

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
