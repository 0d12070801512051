"""The memory manager: notes that are durable when acknowledged and found by every later search."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, final

import apsw

from aios_kernel._database import Database
from aios_kernel.errors import InvalidRequest
from aios_kernel.failpoints import failpoint
from aios_kernel.memory import history, outbox, reading, rows, schema
from aios_kernel.memory.checks import check_add, check_id, check_note, check_search, check_space
from aios_kernel.memory.embedder import Embedder
from aios_kernel.memory.embedding import EmbeddingThread
from aios_kernel.memory.index import Space, Vector, VectorIndex
from aios_kernel.memory.indexer import Indexer
from aios_kernel.memory.recent import Latest
from aios_kernel.memory.reranker import Reranker, reordered
from aios_kernel.memory.rows import Change, Draft, Embedded, Origin
from aios_kernel.memory.searcher import Searcher
from aios_kernel.memory.shelves import Gone, Revectored, Shelves
from aios_kernel.memory.short_term import ShortTerm, forget_orphans
from aios_kernel.memory.terms import TermReader, Terms
from aios_kernel.syscalls import (
    Embeddings,
    MemoryAdd,
    MemoryProgress,
    MemorySearch,
    MemorySpace,
    MemoryUpdate,
    Note,
    Notes,
    Usage,
)

MakeIndex: TypeAlias = Callable[[str], VectorIndex]
"""Opens the vector index for the vectors of one model, given the model's name."""

_FOLLOW: Final = 64
"""So many changes of a space may wait for its next search; then they are taken in beforehand."""
_SWEEP_S: Final = 60.0

_log = logging.getLogger(__name__)


@final
class MemoryManager:
    """Notes per principal and namespace.

    The rows in `memory.db` are the truth, written with full sync, one commit for all notes that wait. Searches work on
    copies in RAM that hold every acknowledged change. Spaces too large for that are searched through the vector index:
    large ones are kept in it beforehand, and it follows the rows within a second or so. Texts are embedded on a thread
    of their own, those that wait together in one go.

    Args:
        home: the data directory; `memory.db` is created in it.
        embedder: makes the vectors; notes embedded by another model are embedded anew, and found by their words
            meanwhile.
        make_index: opens the vector index, at the first need, on the indexer's thread.
        reranker: looks at the best notes once more, together with the query.
        max_vectors: spaces with more are searched through the index.
        index_from: spaces with more are kept in the index, so that it is ready when they need it.
        log_bytes: RAM for the interaction log of one program.
    """

    def __init__(
        self,
        home: Path,
        embedder: Embedder,
        make_index: MakeIndex,
        *,
        reranker: Reranker | None = None,
        max_vectors: int = 200_000,
        index_from: int = 50_000,
        log_bytes: int = 1 << 20,
    ) -> None:
        path = home / "memory.db"
        self._db = Database(path, schema.SCHEMA, schema.VERSION, schema.UPGRADES, busy=True)
        self._model = embedder.name
        self._embedding = EmbeddingThread(embedder)
        self._reranker = reranker
        self._shelves = Shelves(embedder.name, max_vectors=max_vectors)
        self._terms = TermReader()  # on the writer's thread only
        self._indexer = Indexer(
            path, self._db, self._embedding, lambda: make_index(embedder.name), embedder.name, self._revectored,
            index_from=min(index_from, max_vectors),
        )  # fmt: skip
        self._searcher = Searcher(self._shelves, self._indexer)
        self.short_term = ShortTerm(self._db, log_bytes)
        self._ending: set[asyncio.Future[None]] = set()
        self._swept = time.time()
        self._foreign = self._db.submit(self._opened).result()
        if self._foreign:
            _log.warning("%d notes were embedded by another model and will be embedded anew", self._foreign)
        self._indexer.wake()

    async def add(
        self, principal: str, namespace: str, author: str, call: MemoryAdd, *, framework: str = "", program: str = ""
    ) -> Note:
        """Remember a text; the note is durable on return.

        Raises:
            InvalidRequest: a malformed namespace, id, text or metadata.
            NotFound: there is no note to supersede.
            ConfigError: the embedder cannot be loaded.
        """
        space = check_space(principal, namespace)
        id = uuid.uuid4().hex if call.id is None else check_id(call.id)
        check_add(call)
        embedding = self._embedding.submit([call.text]) if call.embed else None
        now = time.time()

        def write(db: apsw.Connection) -> tuple[Change, int | None]:
            embedded = None
            if embedding is not None:
                embedded = Embedded(self._model, embedding.result()[0], self._read(call.text, call.metadata))
            expires_s = None if call.ttl_s is None else now + call.ttl_s
            draft = Draft(
                id, Origin(author, framework, program), call.text, call.metadata, now, embedded, call.source,
                call.time_s, expires_s, fresh=call.id is None,
            )  # fmt: skip
            old = None
            if call.supersedes is not None:
                old = rows.supersede(db, space, call.supersedes, by=author, now=now, newer=id)
            return rows.put(db, space, draft), old

        def committed(written: tuple[Change, int | None]) -> None:
            if call.supersedes is not None:
                self._gone(space, call.supersedes, written[1])
            self._changed(space, written[0])

        # From thread to thread: by way of the event loop it would take twice as long to get there.
        change, _ = await self._db.write(write, committed=committed, after=embedding)
        self._sweep_sometimes(now)
        return change.note

    async def get(self, principal: str, namespace: str, id: str) -> Note:
        """Read one note; raises `NotFound`."""
        space = check_space(principal, namespace)
        check_id(id)
        note, _ = await self._db.read(lambda db: reading.get(db, space, id, time.time()))
        return note

    async def update(
        self, principal: str, namespace: str, call: MemoryUpdate, *, by: str = "", taint: Sequence[str] = ()
    ) -> Note:
        """Replace text and/or metadata of a note, and mark it with sources of `taint`; raises `NotFound`."""
        space, id = check_space(principal, namespace), check_id(call.id)
        if call.text is not None:
            check_note(call.text)
        while True:
            _, has_vector = await self._db.read(lambda db: reading.get(db, space, id, time.time()))
            vector = None
            if has_vector and call.text is not None:
                vector = (await self._embedding.embed([call.text]))[0]
            change = await self._write_update(space, call, vector, by, taint)
            if change is not None:
                return change.note

    async def _write_update(
        self, space: Space, call: MemoryUpdate, vector: Vector | None, by: str, taint: Sequence[str]
    ) -> Change | None:
        def write(db: apsw.Connection) -> Change | None:
            embedded = None
            if vector is not None and call.text is not None:
                embedded = Embedded(self._model, vector, self._read(call.text, call.metadata or {}))
            return rows.update(
                db, space, call.id, by=by, now=time.time(), text=call.text, metadata=call.metadata, embedded=embedded,
                taint=taint,
            )  # fmt: skip

        return await self._db.write(write, committed=lambda change: self._changed(space, change))

    async def delete(self, principal: str, namespace: str, id: str | None, *, by: str = "") -> int:
        """Forget one note, or with `id` None all of the namespace; gives how many there were."""
        space = check_space(principal, namespace)
        if id is not None:
            check_id(id)
        gone = await self._db.write(
            lambda db: rows.delete(db, space, id, by=by, now=time.time()),
            committed=lambda gone: self._deleted(space, gone),
        )
        return len(gone)

    async def search(self, principal: str, namespace: str, call: MemorySearch) -> Notes:
        """Find notes; see `MemorySearch`. Every note acknowledged before the call is among the candidates."""
        space = check_space(principal, namespace)
        k, sieve = check_search(call, time.time())
        if not call.query:
            return Notes(notes=await self._db.read(lambda db: reading.oldest(db, space, sieve, k)))
        vector = (await self._embedding.embed([check_note(call.query)]))[0]
        wanted = k if self._reranker is None else max(k, self._reranker.candidates)

        def look(db: apsw.Connection) -> list[Note] | None:
            return self._searcher.find(db, space, call, vector, sieve, wanted)

        notes = await self._db.read(look)
        if notes is None:  # too large for RAM, and its index was not looked at yet
            await self._indexer.prepare(space)
            notes = await self._db.read(look) or []
        if self._reranker is not None:
            notes = await asyncio.to_thread(reordered, self._reranker, call.query, notes)
        return Notes(notes=notes[:k])

    async def spaces(self, principal: str) -> list[MemorySpace]:
        """The namespaces of a principal that have notes."""
        found = await self._db.read(lambda db: reading.spaces(db, principal, time.time()))
        return [MemorySpace(*space) for space in found]

    async def roll_back(self, principal: str, namespace: str, agent: str, since_s: float, *, by: str = "") -> int:
        """Take back what an agent wrote in a namespace since a time; gives how many notes that changed.

        Changes that others made in the meantime stay. History reaches back 30 days.

        Raises:
            InvalidRequest: the time lies further back.
        """
        space, now = check_space(principal, namespace), time.time()
        if since_s < now - history.DAYS * 86_400:
            raise InvalidRequest(
                f"history reaches back {history.DAYS:g} days", fix="name a later time, or restore a backup"
            )

        def write(db: apsw.Connection) -> int:
            number = reading.number_of(db, space)
            ids = history.touched(db, number, agent, since_s)
            undone = history.roll_back(db, number, ids, agent, since_s, by=by, now=now)
            failpoint("memory.rolled_back")
            for note in undone:
                if note.vector:
                    rows.remember(db, number, note.id)
                    outbox.queue_if_foreign(db, number, note.id, self._model)
            return len(undone)

        return await self._db.write(write, committed=lambda undone: self._rolled_back(space, undone))

    async def reindex(self, principal: str) -> MemoryProgress:
        """Embed every note of a principal anew and rebuild the index, in the background; see `progress`."""
        await self._db.write(lambda db: outbox.disown(db, principal))
        self._foreign = await self._db.write(lambda db: outbox.queue_foreign(db, self._model))
        self._shelves.forget_all()
        self._indexer.wake()
        return await self.progress()

    async def progress(self) -> MemoryProgress:
        """How far embedding by the present model has come."""
        left = await self._db.read(lambda db: outbox.count_foreign(db, self._model))
        return MemoryProgress(model=self._model, total=max(self._foreign, left), left=left)

    async def settle(self) -> None:
        """Return when the index has taken over what was written before."""
        await asyncio.wrap_future(self._indexer.settled())

    async def embed_texts(self, texts: list[str]) -> Embeddings:
        """Embed texts for the `llm.embed` syscall."""
        if not texts:
            raise InvalidRequest("there is no text to embed", fix="give at least one text")
        for text in texts:
            check_note(text)
        vectors = await self._embedding.embed(texts)
        tokens = await self._embedding.count_tokens(texts)
        return Embeddings(vectors=vectors.tolist(), model=self._model, usage=Usage(prompt_tokens=tokens))

    def end_program(self, principal: str, agent: str, program: str) -> None:
        """A program has ended: its interaction log goes, in the background, unless it is kept."""
        ending = asyncio.ensure_future(self.short_term.end((principal, agent, program)))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Finish what was asked, bring the index up to date and close the files."""
        await asyncio.gather(*self._ending, return_exceptions=True)
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._indexer.close()
        self._embedding.close()
        self._db.close()

    def _opened(self, db: apsw.Connection) -> int:
        """At the start: let go of what is over, and see how much another model embedded."""
        history.forget_before(db, time.time() - history.DAYS * 86_400)
        forget_orphans(db)
        self._sweep(db)
        return outbox.queue_foreign(db, self._model)

    def _sweep(self, db: apsw.Connection) -> list[tuple[Space, Mapping[str, int | None]]]:
        now = time.time()
        return [(space, rows.delete(db, space, id, by="", now=now)) for space, id in reading.expired(db, now)]

    def _sweep_sometimes(self, now: float) -> None:
        """Delete the notes whose time is over; searches have left them out already."""
        if now < self._swept + _SWEEP_S:
            return
        self._swept = now
        self._db.submit(self._sweep, committed=self._swept_away)

    def _swept_away(self, swept: Sequence[tuple[Space, Mapping[str, int | None]]]) -> None:
        for space, gone in swept:
            self._deleted(space, gone)

    def _read(self, text: str, metadata: Mapping[str, Any]) -> Terms:
        """The words of a note; on the writer's thread."""
        return self._terms.of(text, rows.speaker_in(metadata))

    # --- after a commit, before its caller hears of it; on the writer's thread ----------------------------------------

    def _changed(self, space: Space, change: Change | None) -> None:
        if change is None:
            return
        if change.entry is not None:
            waiting = self._shelves.changed(space, change.entry, first=change.first)
            if waiting and waiting % _FOLLOW == 0:
                self._db.read_soon(lambda db: self._shelves.of(db, space))
        elif not change.note.searchable:
            self._shelves.changed(space, Gone(change.note.id))
        self._carry(space, change.note.id, change.ticket, None if change.entry is None else change.entry.vector)

    def _gone(self, space: Space, id: str, ticket: int | None) -> None:
        self._shelves.changed(space, Gone(id))
        self._carry(space, id, ticket, None)

    def _deleted(self, space: Space, gone: Mapping[str, int | None]) -> None:
        for id, ticket in gone.items():
            self._gone(space, id, ticket)

    def _rolled_back(self, space: Space, undone: int) -> None:
        self._shelves.forget(space)
        if undone:
            self._indexer.unsettle(space)

    def _revectored(self, space: Space, vectors: Mapping[str, Vector]) -> None:
        for id, vector in vectors.items():
            self._shelves.changed(space, Revectored(id, vector))

    def _carry(self, space: Space, id: str, ticket: int | None, vector: Vector | None) -> None:
        if ticket is not None:
            self._indexer.recent.put(space, id, Latest(ticket, vector))
            self._indexer.wake()
        elif vector is not None:
            self._indexer.grown(space)
