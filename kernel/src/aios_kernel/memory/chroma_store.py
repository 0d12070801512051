"""Chromadb itself, as the worker process uses it: one collection a space, searched by chroma's graph."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, final

from aios_kernel.errors import AiosError, ConfigError, InternalError
from aios_kernel.memory.index import Hit, Space, Vector, Vectors

if TYPE_CHECKING:
    from chromadb.api.client import Client
    from chromadb.api.models.Collection import Collection as ChromaCollection

_BATCH: Final = 1000
# More links than chroma's default of 16: fewer notes fall out of the graph.
_HNSW: Final = {"space": "cosine", "max_neighbors": 32, "ef_construction": 200, "ef_search": 200}


@final
class ChromaStore:
    """`VectorIndex` on chromadb's persistent client, cosine distance, telemetry off; for one process and one thread.

    Args:
        path: the folder; deleted, it is rebuilt from the rows.
        model: the embedder's name; collections of another model are dropped, so that vectors never mix.
    """

    def __init__(self, path: Path, model: str) -> None:
        try:
            import chromadb
            from chromadb.config import Settings
        except ImportError as error:
            raise ConfigError("chromadb is not installed", fix="pip install 'aios-kernel[memory]'") from error
        self._path = path
        self._prefix = "m" + _short(model)[:12] + "-"
        self._collections: dict[Space, ChromaCollection] = {}
        with self._typed():
            client = chromadb.PersistentClient(path, settings=Settings(anonymized_telemetry=False))
            self._client = cast("Client", client)
            for collection in self._client.list_collections():
                if not collection.name.startswith(self._prefix):
                    self._client.delete_collection(collection.name)

    def add(self, space: Space, ids: Sequence[str], vectors: Vectors) -> None:
        """See `VectorIndex.add`."""
        with self._typed():
            collection = self._collection(space)
            for start in range(0, len(ids), _BATCH):
                part = slice(start, start + _BATCH)
                collection.upsert(ids=list(ids[part]), embeddings=vectors[part])

    def search(self, space: Space, vector: Vector, k: int, allowed: Collection[str] | None = None) -> list[Hit]:
        """See `VectorIndex.search`."""
        with self._typed():
            collection = self._known(space)
            if collection is None or k < 1 or (allowed is not None and not allowed):
                return []
            return _query(collection, vector, k, allowed)

    def delete(self, space: Space, ids: Sequence[str]) -> None:
        """See `VectorIndex.delete`."""
        with self._typed():
            collection = self._known(space)
            if collection is None:
                return
            for start in range(0, len(ids), _BATCH):
                collection.delete(ids=list(ids[start : start + _BATCH]))

    def drop(self, space: Space) -> None:
        """See `VectorIndex.drop`."""
        with self._typed():
            if self._known(space) is not None:
                self._client.delete_collection(self._name(space))
                del self._collections[space]

    def count(self, space: Space) -> int:
        """See `VectorIndex.count`."""
        with self._typed():
            collection = self._known(space)
            return 0 if collection is None else collection.count()

    def close(self) -> None:
        """See `VectorIndex.close`."""
        with self._typed():
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

    @contextmanager
    def _typed(self) -> Generator[None]:
        try:
            yield
        except AiosError:
            raise
        except Exception as error:
            raise InternalError(f"the vector index in {self._path} failed: {error}", fix=rebuild(self._path)) from error


def rebuild(path: Path) -> str:
    """What mends any fault of the index."""
    return f"stop the kernel and delete {path}; it is rebuilt from memory.db"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _query(collection: ChromaCollection, vector: Vector, k: int, allowed: Collection[str] | None) -> list[Hit]:
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
