"""`KernelVectorStore`: a LangChain vector store in the kernel's memory."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from aios_adapter_langchain.identity import FRAMEWORK
from aios_adapter_langchain.kernel_embeddings import KernelEmbeddings
from aios_adapter_langchain.plans import Plan, arun, run
from aios_adapters import Scope
from aios_adapters._ambient import ambient
from aios_kernel.errors import InvalidRequest, NotFound, Unsupported
from aios_kernel.syscalls import Count, MemoryAdd, MemoryDelete, MemoryGet, MemorySearch, Note, Notes

Filter = Mapping[str, str | int | float | bool] | None


class KernelVectorStore(VectorStore):
    """Documents as notes of the agent that is on; outside of every agent, of the agent `agent`.

    The kernel embeds them, and finds them by their meaning and their words; a score lies in 0 to 1, higher is nearer.

    Args:
        name: tells several stores of one agent apart.
        agent: whose documents they are outside of every agent.
        namespace: where the notes are instead: a memory namespace that the agent may use, such as `group/team/papers`.
    """

    __aios_direct__ = True

    def __init__(self, name: str = "default", *, agent: str = "langchain", namespace: str | None = None) -> None:
        self._name, self._agent, self._namespace = name, agent, namespace

    @property
    def embeddings(self) -> Embeddings:
        """The kernel's embedder."""
        return KernelEmbeddings(agent=self._agent)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts, or replace those of the same ids; gives the ids. All are durable, and found, on return."""
        notes = self._notes(texts, metadatas, ids, kwargs)
        return run(self._scope(), self._added(notes))

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Like `add_texts`; the texts are embedded together."""
        notes = self._notes(texts, metadatas, ids, kwargs)
        scope = self._scope()
        added = await asyncio.gather(*(scope.acall(note, Note) for note in self._placed(scope.agent, notes)))
        return [note.id for note in added]

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of these ids that there are."""
        return run(self._scope(), self._got(ids))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Like `get_by_ids`."""
        return await arun(self._scope(), self._got(ids))

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Delete documents; None deletes all."""
        return run(self._scope(), self._deleted(ids, kwargs))

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Like `delete`."""
        return await arun(self._scope(), self._deleted(ids, kwargs))

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The `k` nearest documents with these metadata values, best first, with their scores."""
        return run(self._scope(), self._searched(query, k, filter, kwargs))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Like `similarity_search_with_score`."""
        return await arun(self._scope(), self._searched(query, k, filter, kwargs))

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The `k` nearest documents, best first."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Like `similarity_search`."""
        return [document for document, _ in await self.asimilarity_search_with_score(query, k, **kwargs)]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Near documents that differ from each other, chosen among the `fetch_k` nearest."""
        near = self.similarity_search(query, fetch_k, **kwargs)
        vectors = self.embeddings.embed_documents([query, *(document.page_content for document in near)])
        return _varied(near, vectors, k, lambda_mult)

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Like `max_marginal_relevance_search`."""
        near = await self.asimilarity_search(query, fetch_k, **kwargs)
        vectors = await self.embeddings.aembed_documents([query, *(document.page_content for document in near)])
        return _varied(near, vectors, k, lambda_mult)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> KernelVectorStore:
        """A store with these texts. Raises Unsupported for another embedding than the kernel's."""
        store = cls._made(embedding, kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> KernelVectorStore:
        """Like `from_texts`."""
        store = cls._made(embedding, kwargs)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    def _made(cls, embedding: Embeddings | None, options: dict[str, Any]) -> KernelVectorStore:
        if embedding is not None and not isinstance(embedding, KernelEmbeddings):
            raise Unsupported(
                f"a KernelVectorStore does not embed with {type(embedding).__name__}: the kernel embeds its notes",
                fix="pass KernelEmbeddings(), or none; AIOS_EMBEDDER chooses the kernel's model",
            )
        return cls(**options)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda score: score  # it is one already

    # --- plans ------------------------------------------------------------------------------------------------------

    def _space(self, agent: str) -> str:
        return self._namespace or f"agent/{agent}/langchain-documents/{self._name}"

    def _notes(
        self,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any]] | None,
        ids: Sequence[str | None] | None,
        others: Mapping[str, Any],
    ) -> list[MemoryAdd]:
        _refuse(others)
        texts = [*texts]
        metadatas = [{}] * len(texts) if metadatas is None else metadatas
        ids = [None] * len(texts) if ids is None else ids
        if not len(texts) == len(metadatas) == len(ids):
            raise InvalidRequest(f"{len(texts)} texts have {len(metadatas)} metadatas and {len(ids)} ids")
        return [
            MemoryAdd(text=text, metadata=dict(metadata or {}), id=id or uuid.uuid4().hex)
            for text, metadata, id in zip(texts, metadatas, ids, strict=True)
        ]

    def _placed(self, agent: str, notes: Sequence[MemoryAdd]) -> list[MemoryAdd]:
        space = self._space(agent)
        return [MemoryAdd(text=n.text, metadata=n.metadata, id=n.id, namespace=space) for n in notes]

    def _added(self, notes: Sequence[MemoryAdd]) -> Plan[list[str]]:
        ids: list[str] = []
        for note in self._placed(self._scope().agent, notes):
            added: Note = yield note, Note
            ids.append(added.id)
        return ids

    def _got(self, ids: Sequence[str]) -> Plan[list[Document]]:
        space, found = self._space(self._scope().agent), list[Document]()
        for id in ids:
            try:
                note: Note = yield MemoryGet(id=id, namespace=space), Note
            except NotFound:
                continue
            found.append(_document(note))
        return found

    def _deleted(self, ids: Sequence[str] | None, others: Mapping[str, Any]) -> Plan[bool]:
        _refuse(others)
        space = self._space(self._scope().agent)
        for id in [None] if ids is None else ids:
            yield MemoryDelete(id=id, namespace=space), Count
        return True

    def _searched(
        self, query: str, k: int, filter: Filter, others: Mapping[str, Any]
    ) -> Plan[list[tuple[Document, float]]]:
        _refuse(others)
        if not query:
            raise InvalidRequest("the query is empty", fix="say what to look for")
        space = self._space(self._scope().agent)
        found: Notes = yield MemorySearch(query=query, namespace=space, k=k, filter=dict(filter or {})), Notes
        return [(_document(note), note.score or 0.0) for note in found.notes]

    def _scope(self) -> Scope:
        return ambient(self._agent, FRAMEWORK)


def _document(note: Note) -> Document:
    return Document(id=note.id, page_content=note.text, metadata=note.metadata)


def _varied(near: Sequence[Document], vectors: list[list[float]], k: int, lambda_mult: float) -> list[Document]:
    chosen = maximal_marginal_relevance(np.array(vectors[0]), vectors[1:], lambda_mult=lambda_mult, k=k)
    return [near[index] for index in chosen]


def _refuse(options: Mapping[str, Any]) -> None:
    """What this store does not know is refused by name."""
    for name in options:
        raise Unsupported(f"{name} is not supported by KernelVectorStore", fix="leave it out")
