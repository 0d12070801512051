"""`KernelMemory` and `KernelVectorStore`, and vector stores that stay where they are."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters, SimpleVectorStore
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

import aios_adapters as aios
from aios_adapter_llamaindex.kernel_memory import KernelMemory
from aios_adapter_llamaindex.kernel_vectors import KernelVectorStore
from aios_adapters.testing import KernelHandle
from aios_kernel.errors import InvalidRequest, Unsupported

TEXTS = {"train": "the train to Rome leaves at nine", "cats": "cats sleep all day", "paid": "the invoice was paid"}


def nodes() -> list[TextNode]:
    made = [TextNode(id_=key, text=text, metadata={"kind": key[0]}) for key, text in TEXTS.items()]
    made[0].relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="timetable")
    return made


def equal(key: str, value: Any, operator: FilterOperator = FilterOperator.EQ) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


def test_an_index_on_the_kernel(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice")
    def learn() -> None:
        index = VectorStoreIndex.from_vector_store(KernelVectorStore(), embed_model=MockEmbedding(1))
        index.insert_nodes(nodes())

    @aios.agent(name="alice")
    def find(question: str) -> list[Any]:
        index = VectorStoreIndex.from_vector_store(KernelVectorStore(), embed_model=MockEmbedding(1))
        return index.as_retriever(similarity_top_k=1).retrieve(question)

    learn()
    (found,) = find("when does the train to Rome leave?")
    assert (found.node.node_id, found.node.get_content(), found.node.metadata) == (
        "train",
        TEXTS["train"],
        {"kind": "t"},
    )
    assert found.score > 0
    assert find("where do cats sleep?")[0].node.node_id == "cats"


def test_nodes_by_id_filter_and_document(fake_kernel: KernelHandle) -> None:
    with aios.running("alice"):
        store = KernelVectorStore(name="docs")
        assert store.add(nodes()) == ["train", "cats", "paid"]
        assert store.add(nodes()[1:2]) == ["cats"]  # replaced, not doubled
        assert [node.node_id for node in store.get_nodes(["cats", "none"])] == ["cats"]
        assert [node.node_id for node in store.get_nodes(filters=equal("kind", "p"))] == ["paid"]
        found = store.query(VectorStoreQuery(query_str="train", similarity_top_k=5, filters=equal("kind", "c")))
        assert found.ids == ["cats"]
        store.delete("timetable")
        assert {node.node_id for node in store.get_nodes()} == {"cats", "paid"}
        store.delete_nodes(["cats"])
        assert [node.node_id for node in store.get_nodes()] == ["paid"]
        assert KernelVectorStore(name="other").get_nodes() == []
        store.clear()
        assert store.get_nodes() == []


def test_what_it_does_not_do_is_refused(fake_kernel: KernelHandle) -> None:
    store = KernelVectorStore()
    with pytest.raises(InvalidRequest, match="none is on"):
        store.get_nodes()
    with aios.running("alice"):
        with pytest.raises(InvalidRequest, match="no text"):
            store.query(VectorStoreQuery(query_embedding=[1.0]))
        with pytest.raises(Unsupported, match="mmr"):
            store.query(VectorStoreQuery(query_str="x", mode=VectorStoreQueryMode.MMR))
        with pytest.raises(Unsupported, match="equality"):
            store.get_nodes(filters=equal("kind", 1, FilterOperator.GT))


async def test_another_vector_store_is_mediated(fake_kernel: KernelHandle) -> None:
    store = SimpleVectorStore()
    node = TextNode(id_="n", text="x", embedding=[1.0, 0.0])

    @aios.agent(name="alice")
    async def work() -> list[str] | None:
        store.add([node])
        return (await store.aquery(VectorStoreQuery(query_embedding=[1.0, 0.0]))).ids

    assert await work() == ["n"]
    assert [row.memory_calls for row in fake_kernel.ps()] == [2]


def test_an_index_that_is_built_anew_in_each_run(fake_kernel: KernelHandle) -> None:
    """Its nodes lie in the program's own document store: were the vectors kept alone, the second run would fail."""

    @aios.agent(name="alice")
    def run() -> list[str]:
        index = VectorStoreIndex(nodes(), embed_model=MockEmbedding(4))
        return sorted(found.node.get_content() for found in index.as_retriever(similarity_top_k=9).retrieve("cats"))

    assert run() == run() == sorted(TEXTS.values())
    assert [row.memory_calls for row in fake_kernel.ps()] == [2, 2]


def test_a_conversation_with_old_messages_that_matter(fake_kernel: KernelHandle) -> None:
    def said(memory: KernelMemory, question: str | None = None) -> list[str | None]:
        return [message.content for message in memory.get(question)]

    @aios.agent(name="alice", memory="off")
    def first() -> None:
        memory = KernelMemory.from_defaults(session="trips")
        memory.put_messages([ChatMessage(role="user", content=text) for text in TEXTS.values()])

    @aios.agent(name="alice", memory="off")
    def second() -> None:
        memory = KernelMemory(session="trips", recent=1, k=1)
        assert said(memory) == [TEXTS["paid"]]
        assert said(memory, "when does the train leave?") == [TEXTS["train"], TEXTS["paid"]]
        assert len(memory.get_all()) == 3
        memory.set([ChatMessage(role="assistant", content="new")])
        assert [message.role.value for message in memory.get_all()] == ["assistant"]
        memory.reset()
        assert memory.get_all() == []

    first()
    second()
