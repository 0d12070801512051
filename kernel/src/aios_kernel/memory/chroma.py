"""The vector index in chromadb: one collection a space. Only the kernel's process may open the folder.

Chroma's graph search loses notes whose vectors are nearly equal: of 1,000 such notes 35 to 48 were missing even when
all were asked for (measured, chromadb 1.5.9, default links; none of ordinary texts). So a space of up to 20,000 vectors
is searched exactly, in a copy in RAM that is read from its collection; larger ones by the graph.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, final

import numpy as np

from aios_kernel.errors import AiosError, ConfigError, InternalError
from aios_kernel.memory.exact import ExactIndex
from aios_kernel.memory.index import Hit, Space, Vector, Vectors

if TYPE_CHECKING:
    from chromadb.api.client import Client
    from chromadb.api.models.Collection import Collection as ChromaCollection

_BATCH: Final = 1000
_EXACT_LIMIT: Final = 20_000
_COPIED_LIMIT: Final = 100_000
# More links than chroma's default of 16: fewer notes fall out of the graph.
_HNSW: Final = {"space": "cosine", "max_neighbors": 32, "ef_construction": 200, "ef_search": 200}


@final
class ChromaIndex:
    """`VectorIndex` on chromadb's persistent client, cosine distance, telemetry off.

    Args:
        path: the folder; deleted, it is rebuilt from the rows.
        model: the embedder's name; collections of another model are dropped, so that vectors never mix.
        exact_limit: spaces of up to this many vectors are searched exactly.
    """

    def __init__(self, path: Path, model: str, *, exact_limit: int = _EXACT_LIMIT) -> None:
        try:
            import chromadb
            from chromadb.config import Settings
        except ImportError as error:
            raise ConfigError("chromadb is not installed", fix="pip install 'aios-kernel[memory]'") from error
        self._path = path
        self._prefix = "m" + _short(model)[:12] + "-"
        self._exact_limit = exact_limit
        self._collections: dict[Space, ChromaCollection] = {}
        self._copies = ExactIndex()
        self._copied: dict[Space, int] = {}  # when each copy was last used, by `_uses`
        self._uses = itertools.count()
        self._large: set[Space] = set()  # searched by the graph
        self._lock = threading.Lock()
        with self._typed():
            client = chromadb.PersistentClient(path, settings=Settings(anonymized_telemetry=False))
            self._client = cast("Client", client)
            for collection in self._client.list_collections():
                if not collection.name.startswith(self._prefix):
                    self._client.delete_collection(collection.name)

    def add(self, space: Space, ids: Sequence[str], vectors: Vectors) -> None:
        """See `VectorIndex.add`."""
        with self._lock, self._typed():
            collection = self._collection(space)
            if space not in self._copied:
                self._copy(space, collection)
            for start in range(0, len(ids), _BATCH):
                part = slice(start, start + _BATCH)
                collection.upsert(ids=list(ids[part]), embeddings=vectors[part])
            if space in self._copied:
                self._copies.add(space, ids, vectors)
                self._bound_copies()

    def search(self, space: Space, vector: Vector, k: int, allowed: Collection[str] | None = None) -> list[Hit]:
        """See `VectorIndex.search`."""
        if k < 1 or (allowed is not None and not allowed):
            return []
        while not (space in self._copied or space in self._large):
            # An `add` holds the lock for long, but makes the copy first: no need to wait for its end.
            if self._lock.acquire(timeout=0.01):
                try:
                    if not self._open(space):
                        return []
                finally:
                    self._lock.release()
        hits = self._copies.search(space, vector, k, allowed)
        if space in self._copied:
            self._copied[space] = next(self._uses)
            return hits
        with self._typed():
            return _query(self._collections[space], vector, k, allowed)

    def delete(self, space: Space, ids: Sequence[str]) -> None:
        """See `VectorIndex.delete`."""
        with self._lock, self._typed():
            collection = self._known(space)
            if collection is None:
                return
            for start in range(0, len(ids), _BATCH):
                collection.delete(ids=list(ids[start : start + _BATCH]))
            self._copies.delete(space, ids)

    def drop(self, space: Space) -> None:
        """See `VectorIndex.drop`."""
        with self._lock, self._typed():
            if self._known(space) is not None:
                self._client.delete_collection(self._name(space))
                del self._collections[space]
                self._forget_copy(space)
                self._large.discard(space)

    def count(self, space: Space) -> int:
        """See `VectorIndex.count`."""
        with self._lock, self._typed():
            collection = self._known(space)
            return 0 if collection is None else collection.count()

    def close(self) -> None:
        """See `VectorIndex.close`."""
        with self._lock, self._typed():
            self._collections.clear()
            self._client.close()

    def _name(self, space: Space) -> str:
        return self._prefix + _short("\0".join(space))

    def _collection(self, space: Space) -> ChromaCollection:
        known = self._collections.get(space)
        if known is None:
            known = self._client.get_or_create_collection(
                self._name(space),
                embedding_function=None,
                configuration=cast("Any", {"hnsw": _HNSW}),
                metadata={"principal": space.principal, "namespace": space.namespace},
            )
            self._collections[space] = known
        return known

    def _known(self, space: Space) -> ChromaCollection | None:
        """The collection of a space, if it has one; asking does not create it."""
        from chromadb.errors import NotFoundError

        known = self._collections.get(space)
        if known is None:
            try:
                known = self._client.get_collection(self._name(space), embedding_function=None)
            except NotFoundError:
                return None
            self._collections[space] = known
        return known

    def _open(self, space: Space) -> bool:
        """Find out how a space is searched; False if it has no collection."""
        with self._typed():
            collection = self._known(space)
            if collection is not None:
                self._copy(space, collection)
            return collection is not None

    def _copy(self, space: Space, collection: ChromaCollection) -> None:
        """Read the vectors of a space into RAM, or note that they are too many."""
        total = collection.count()
        if total > self._exact_limit:
            self._large.add(space)
            return
        for start in range(0, total, _BATCH):
            page: Any = collection.get(limit=_BATCH, offset=start, include=["embeddings"])
            self._copies.add(space, page["ids"], np.asarray(page["embeddings"], np.float32))
        self._copied[space] = next(self._uses)
        self._large.discard(space)
        self._bound_copies()

    def _bound_copies(self) -> None:
        """Drop copies that grew too large, and the least recently used while there are too many."""
        sizes = {space: self._copies.count(space) for space in sorted(self._copied, key=self._copied.__getitem__)}
        total = sum(sizes.values())
        for space, size in sizes.items():
            if size > self._exact_limit:
                self._large.add(space)
            if size > self._exact_limit or (total > _COPIED_LIMIT and len(self._copied) > 1):
                self._forget_copy(space)
                total -= size

    def _forget_copy(self, space: Space) -> None:
        self._copied.pop(space, None)
        self._copies.drop(space)

    @contextmanager
    def _typed(self) -> Generator[None]:
        try:
            yield
        except AiosError:
            raise
        except Exception as error:
            raise InternalError(
                f"the vector index in {self._path} failed: {error}",
                fix=f"stop the kernel and delete {self._path}; it is rebuilt from memory.db",
            ) from error


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _query(collection: ChromaCollection, vector: Vector, k: int, allowed: Collection[str] | None) -> list[Hit]:
    """Search the graph."""
    ids = None if allowed is None else list(allowed)
    try:
        found: Any = collection.query(query_embeddings=[vector], n_results=k, ids=ids, include=["distances"])
    except Exception:
        if ids is None:
            raise
        # An id that chroma does not know fails the whole query, by an error of no class of its own.
        known = collection.get(ids=ids, include=[])["ids"]
        if len(known) == len(ids):
            raise
        return _query(collection, vector, k, known) if known else []
    return [Hit(id, 1.0 - float(far)) for id, far in zip(found["ids"][0], found["distances"][0], strict=True)]
