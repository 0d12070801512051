"""The memory manager: notes that are durable when acknowledged and found by every later search."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, final

import apsw

from aios_kernel._database import Database
from aios_kernel._names import check_text, split_name
from aios_kernel.errors import InvalidRequest
from aios_kernel.memory import outbox, rows
from aios_kernel.memory.embedder import Embedder
from aios_kernel.memory.embedding import EmbeddingThread
from aios_kernel.memory.fusion import fused, hits_wanted
from aios_kernel.memory.index import Space, Vector, VectorIndex
from aios_kernel.memory.indexer import Indexer
from aios_kernel.memory.labels import Scalar
from aios_kernel.memory.lexicons import Lexicons
from aios_kernel.memory.recent import Latest, nearest
from aios_kernel.memory.rows import Change, Draft, Embedded
from aios_kernel.syscalls import Embeddings, MemoryAdd, MemorySearch, MemoryUpdate, Note, Notes, Usage

MakeIndex: TypeAlias = Callable[[str], VectorIndex]
"""Opens the vector index for the vectors of one model, given the model's name."""

_MAX_TEXT = 8 * 1024 * 1024
_MAX_K = 1_000_000

_log = logging.getLogger(__name__)


@final
class MemoryManager:
    """Notes per principal and namespace.

    The rows in `memory.db` are the truth, written with full sync, one commit for all notes that wait. The vector index
    follows within a second or so; until then a note is searched exactly in RAM. Texts are embedded on a thread of
    their own, those that wait together in one go.

    Args:
        home: the data directory; `memory.db` is created in it.
        embedder: makes the vectors; notes embedded by another model are embedded anew before they are searched.
        make_index: opens the vector index, at the first need, on the indexer's thread.
    """

    def __init__(self, home: Path, embedder: Embedder, make_index: MakeIndex) -> None:
        path = home / "memory.db"
        self._db = Database(path, rows.SCHEMA, rows.VERSION)
        self._model = embedder.name
        self._embedding = EmbeddingThread(embedder)
        self._lexicons = Lexicons()
        self._indexer = Indexer(path, self._db, self._embedding, lambda: make_index(embedder.name), embedder.name)
        foreign = self._db.submit(lambda db: outbox.queue_foreign(db, embedder.name)).result()
        if foreign:
            _log.warning("%d notes were embedded by another model and will be embedded by %s", foreign, self._model)

    async def add(self, principal: str, namespace: str, author: str, call: MemoryAdd) -> Note:
        """Remember a text; the note is durable on return.

        Raises:
            InvalidRequest: a malformed namespace, id, text or metadata.
            ConfigError: the embedder cannot be loaded.
        """
        space = _space(principal, namespace)
        id = uuid.uuid4().hex if call.id is None else _check_id(call.id)
        embedded = await self._embed(_check_note(call.text)) if call.embed else None
        draft = Draft(id, author, call.text, call.metadata, time.time(), embedded)
        change = await self._db.write(
            lambda db: rows.put(db, space, draft), committed=lambda change: self._changed(space, change, embedded)
        )
        return change.note

    async def get(self, principal: str, namespace: str, id: str) -> Note:
        """Read one note; raises `NotFound`."""
        space = _space(principal, namespace)
        _check_id(id)
        note, _ = await self._db.read(lambda db: rows.get(db, space, id))
        return note

    async def update(self, principal: str, namespace: str, call: MemoryUpdate) -> Note:
        """Replace text and/or metadata of a note; raises `NotFound`."""
        space, id = _space(principal, namespace), _check_id(call.id)
        if call.text is not None:
            _check_note(call.text)
        while True:
            _, has_vector = await self._db.read(lambda db: rows.get(db, space, id))
            embedded = await self._embed(call.text) if has_vector and call.text is not None else None
            change = await self._write_update(space, id, call, embedded)
            if change is not None:
                return change.note

    async def _write_update(
        self, space: Space, id: str, call: MemoryUpdate, embedded: Embedded | None
    ) -> Change | None:
        return await self._db.write(
            lambda db: rows.update(db, space, id, text=call.text, metadata=call.metadata, embedded=embedded),
            committed=lambda change: self._changed(space, change, embedded),
        )

    async def delete(self, principal: str, namespace: str, id: str | None) -> int:
        """Forget one note, or with `id` None all of the namespace; gives how many there were."""
        space = _space(principal, namespace)
        if id is not None:
            _check_id(id)

        def forget(gone: Mapping[str, int | None]) -> None:
            for name, ticket in gone.items():
                self._lexicons.changed(space, name)
                if ticket is not None:
                    self._indexer.recent.put(space, name, Latest(ticket, None))
            if gone:
                self._indexer.wake()

        return len(await self._db.write(lambda db: rows.delete(db, space, id), committed=forget))

    async def search(self, principal: str, namespace: str, call: MemorySearch) -> Notes:
        """Find notes; see `MemorySearch`. Every note acknowledged before the call is among the candidates."""
        space = _space(principal, namespace)
        k, labels = _check_k(call.k), _check_filter(call.filter)
        if not call.query:
            return Notes(notes=await self._db.read(lambda db: rows.oldest(db, space, labels, k)))
        embedded = await self._embed(_check_note(call.query))
        if not self._indexer.is_open(space):
            known = set(self._indexer.recent.of(space))
            if await self._db.read(lambda db: outbox.any_besides(db, space, known)):
                await self._indexer.prepare(space)
        return Notes(
            notes=await self._db.read(lambda db: self._nearest(db, space, call.query, embedded.vector, k, labels))
        )

    async def embed_texts(self, texts: list[str]) -> Embeddings:
        """Embed texts for the `llm.embed` syscall."""
        if not texts:
            raise InvalidRequest("there is no text to embed", fix="give at least one text")
        for text in texts:
            _check_note(text)
        vectors = await self._embedding.embed(texts)
        tokens = await self._embedding.count_tokens(texts)
        return Embeddings(vectors=vectors.tolist(), model=self._model, usage=Usage(prompt_tokens=tokens))

    async def close(self) -> None:
        """Finish what was asked, bring the index up to date and close the files."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._indexer.close()
        self._embedding.close()
        self._db.close()

    async def _embed(self, text: str) -> Embedded:
        return Embedded(self._model, (await self._embedding.embed([text]))[0])

    def _changed(self, space: Space, change: Change | None, embedded: Embedded | None) -> None:
        """Make a committed change findable, before its caller hears of it; on the writer thread."""
        if change is None:
            return
        self._lexicons.changed(space, change.note.id)
        if change.ticket is not None:
            vector = None if embedded is None else embedded.vector
            self._indexer.recent.put(space, change.note.id, Latest(change.ticket, vector))
            self._indexer.wake()

    def _nearest(
        self, db: apsw.Connection, space: Space, query: str, vector: Vector, k: int, labels: Mapping[str, Scalar]
    ) -> list[Note]:
        # The lexicon's read fixes the view of the rows, then come the recent changes, then the index: what leaves
        # `recent` in between is in the index already, and what a later commit adds is not in the view.
        lexicon = self._lexicons.of(db, space)
        allowed = rows.with_vectors(db, space, labels)
        recent = self._indexer.recent.of(space)
        wanted = hits_wanted(lexicon, k)
        indexed = None if allowed is None else allowed - recent.keys()
        hits = self._indexer.search(space, vector, wanted + len(recent), indexed)
        fresh = nearest(recent, vector, allowed)
        near = sorted([*(hit for hit in hits if hit.id not in recent), *fresh], key=lambda hit: -hit.score)
        return list(rows.fetch_scored(db, space, fused(lexicon, query, near[:wanted], allowed, k)))


def _space(principal: str, namespace: str) -> Space:
    split_name(namespace, "namespace")
    return Space(principal, namespace)


def _check_id(id: str) -> str:
    if not id:
        raise InvalidRequest("a note's id is empty", fix="leave it out to get one")
    return check_text(id, "note id")


def _check_note(text: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest("the text contains half a surrogate pair", fix="send valid Unicode") from error
    if size > _MAX_TEXT:
        raise InvalidRequest(f"the text has {size:,} bytes; a note holds {_MAX_TEXT:,}", fix="split the text")
    return text


def _check_k(k: int) -> int:
    if k < 1:
        raise InvalidRequest(f"k is {k}", fix="ask for at least one note")
    return min(k, _MAX_K)


def _check_filter(labels: Mapping[str, Any]) -> Mapping[str, Scalar]:
    for key, value in labels.items():
        if not isinstance(value, str | int | float | bool):
            raise InvalidRequest(f"the filter on {key[:80]!a} is no scalar", fix="use a string, a number or a boolean")
        _check_note(key)
    return labels
