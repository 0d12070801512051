"""`KernelVectorStore`: a vector store for those who choose the kernel openly. The kernel embeds; no vectors travel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from aios_adapter_llamaindex.shelf import part
from aios_adapters._scope import required
from aios_kernel.errors import InvalidRequest, NotFound, Unsupported
from aios_kernel.syscalls import Count, MemoryAdd, MemoryDelete, MemoryGet, MemorySearch, Note, Notes

_ALL = 1_000_000


class KernelVectorStore(BasePydanticVectorStore):
    """Nodes as notes of the kernel, found by meaning and words; needs an agent that is on.

    `VectorStoreIndex.from_vector_store(KernelVectorStore(name="docs"), embed_model=MockEmbedding(1))`: LlamaIndex asks
    for an embedding of what is added, which is not used. `shared` nodes are the group's.
    """

    aios_kept: bool = True  # its accesses are syscalls already
    stores_text: bool = True
    is_embedding_query: bool = False
    name: str = "vectors"
    shared: bool = False

    @property
    def client(self) -> None:
        """There is none."""

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Keep nodes; one of the same id is replaced."""
        for node in nodes:
            required("KernelVectorStore.add").call(self._note(node), Note)
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Forget the nodes of a document."""
        self._forget([note.id for note in self._list({"ref_doc_id": ref_doc_id})])

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Forget nodes by id, by metadata, or those that both name."""
        self._forget([node.node_id for node in self.get_nodes(node_ids, filters)])

    def clear(self) -> None:
        """Forget all."""
        self._forget([note.id for note in self._list({})])

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Nodes by id, by metadata, or those that both name."""
        if node_ids is None:
            return [_node(note) for note in self._list(_equal(filters))]
        wanted = _equal(filters)
        notes = [note for node_id in node_ids if (note := self._get(node_id)) is not None]
        return [_node(note) for note in notes if wanted.items() <= note.metadata.items()]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nodes nearest to a text. Raises Unsupported for other modes, InvalidRequest without a text."""
        if query.mode not in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.HYBRID):
            raise Unsupported(f"the query mode {query.mode.value} is not supported", fix="use the default mode")
        if not query.query_str:
            raise InvalidRequest("the query has no text", fix="pass query_str; the kernel embeds it itself")
        search = MemorySearch(
            query.query_str, self._space(), query.similarity_top_k, self._filter(_equal(query.filters))
        )
        notes = required("KernelVectorStore.query").call(search, Notes).notes
        wanted = set(query.node_ids or ()) or None
        found = [note for note in notes if wanted is None or note.id in wanted]
        return VectorStoreQueryResult(
            nodes=[_node(note) for note in found],
            similarities=[note.score or 0.0 for note in found],
            ids=[note.id for note in found],
        )

    def _note(self, node: BaseNode) -> MemoryAdd:
        plain = {key: value for key, value in node.metadata.items() if isinstance(value, str | int | float | bool)}
        kept = node_to_metadata_dict(node, remove_text=False, flat_metadata=False)
        about = {"store": self.name, "ref_doc_id": node.ref_doc_id or ""}
        metadata = {**plain, **about, "_node_content": kept["_node_content"], "_node_type": kept["_node_type"]}
        text = node.get_content(MetadataMode.EMBED)
        return MemoryAdd(text or " ", self._space(), metadata, node.node_id, embed=bool(text.strip()))

    def _list(self, filter: dict[str, Any]) -> list[Note]:
        search = MemorySearch(namespace=self._space(), k=_ALL, filter=self._filter(filter))
        return required("KernelVectorStore").call(search, Notes).notes

    def _get(self, node_id: str) -> Note | None:
        try:
            return required("KernelVectorStore").call(MemoryGet(node_id, self._space()), Note)
        except NotFound:
            return None

    def _forget(self, ids: list[str]) -> None:
        for node_id in ids:
            required("KernelVectorStore").call(MemoryDelete(node_id, self._space()), Count)

    def _filter(self, filter: dict[str, Any]) -> dict[str, Any]:
        return {**filter, "store": self.name}

    def _space(self) -> str:
        scope = required("KernelVectorStore")
        while scope.parent is not None:
            scope = scope.parent
        return "group" if self.shared else f"agent/{scope.agent}/llamaindex/vectors/{part(self.name)}"


def _node(note: Note) -> BaseNode:
    return metadata_dict_to_node(dict(note.metadata))


def _equal(filters: MetadataFilters | None) -> dict[str, Any]:
    """Filters as equalities that all hold. Raises Unsupported for others."""
    if filters is None:
        return {}
    if filters.condition not in (FilterCondition.AND, None):
        raise Unsupported(f"filters joined by {filters.condition} are not supported", fix="join them by AND")
    return dict(_equality(each) for each in filters.filters)


def _equality(filter: MetadataFilter | MetadataFilters) -> tuple[str, Any]:
    if isinstance(filter, MetadataFilters) or filter.operator != FilterOperator.EQ:
        raise Unsupported("only filters by equality are supported", fix="use FilterOperator.EQ")
    return filter.key, filter.value
