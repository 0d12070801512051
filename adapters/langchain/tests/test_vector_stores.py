"""LangChain's own vector stores inside of agents: kept by the kernel while they live in the process, else mediated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_openai import OpenAIEmbeddings

import aios_adapters as aios
from aios_adapter_langchain import KernelVectorStore, vector_copy
from aios_adapters.testing import KernelHandle
from aios_kernel import errors

EMBEDDER = DeterministicFakeEmbedding(size=8)
PLANTS = ["a tall oak", "red roses", "wet moss"]


def kept_calls(kernel: KernelHandle) -> list[str]:
    return [s.syscall for s in kernel.spans() if s.syscall.startswith(("storage.", "memory."))]


def texts_of(store: InMemoryVectorStore) -> list[str]:
    return sorted(document.page_content for document in store.similarity_search("anything", k=100))


async def test_documents_survive_their_store(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="gardener")
    def write() -> tuple[list[str], Any]:
        store = InMemoryVectorStore(EMBEDDER)
        ids = store.add_texts(PLANTS, [{"n": n, "pair": [1, {"a": None}]} for n in range(3)])
        return ids, store.similarity_search_with_score("red roses", k=2)

    @aios.agent(name="gardener")
    async def read(ids: list[str]) -> tuple[Any, ...]:
        store = InMemoryVectorStore(EMBEDDER)
        return (
            await store.asimilarity_search_with_score("red roses", k=2),
            store.similarity_search_with_score("red roses", k=2),
            await store.aget_by_ids(ids[:2]),
            store.max_marginal_relevance_search("red roses", k=3),
        )

    ids, found = write()
    later, again, got, varied = await read(ids)
    assert later == again == found, "the same documents, with the same scores of the program's own embedder"
    assert found[0][0].page_content == "red roses"
    assert found[0][1] == pytest.approx(1.0)
    assert [(d.id, d.page_content, d.metadata) for d in got] == [
        (ids[n], PLANTS[n], {"n": n, "pair": [1, {"a": None}]}) for n in range(2)
    ]
    assert sorted(document.page_content for document in varied) == sorted(PLANTS)


def test_an_index_that_is_built_anew_does_not_grow(fake_kernel: KernelHandle) -> None:
    """The usual program: it adds the same texts at every start, under ids that LangChain makes."""

    @aios.agent(name="gardener")
    def run(*texts: str) -> tuple[int, list[str]]:
        store = InMemoryVectorStore.from_texts(list(texts), EMBEDDER)
        return len(store.store), texts_of(store)

    for _ in range(3):
        assert run(*PLANTS) == (3, sorted(PLANTS))
    assert run("a new fern") == (4, sorted([*PLANTS, "a new fern"])), "what was known before is remembered"
    assert run("twice", "twice") == (6, sorted([*PLANTS, "a new fern", "twice", "twice"])), "as without the kernel"
    assert run("twice", "twice") == (6, sorted([*PLANTS, "a new fern", "twice", "twice"]))


def test_ids_of_the_program_are_its_own(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="gardener")
    def run(id: str, text: str) -> list[tuple[str | None, str]]:
        store = InMemoryVectorStore(EMBEDDER)
        store.add_documents([Document(id=id, page_content=text)])
        return sorted((document.id, document.page_content) for document in store.similarity_search("x", k=10))

    assert run("a", "moss") == [("a", "moss")]
    assert run("b", "moss") == [("a", "moss"), ("b", "moss")]
    assert run("a", "oak") == [("a", "oak"), ("b", "moss")]


async def test_what_is_deleted_is_gone(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="gardener")
    async def write() -> None:
        store = InMemoryVectorStore(EMBEDDER)
        ids = await store.aadd_texts(PLANTS)
        store.delete([ids[0]])
        await store.adelete([ids[1]])

    @aios.agent(name="gardener")
    def read() -> list[str]:
        return texts_of(InMemoryVectorStore(EMBEDDER))

    await write()
    assert read() == [PLANTS[2]]


def test_agents_have_documents_of_their_own(fake_kernel: KernelHandle) -> None:
    def add(text: str) -> None:
        InMemoryVectorStore(EMBEDDER).add_texts([text])

    def read() -> list[str]:
        return texts_of(InMemoryVectorStore(EMBEDDER))

    aios.agent(add, name="ann")("hers")
    assert aios.agent(read, name="bob")() == []
    assert aios.agent(read, name="ann")() == ["hers"]


def test_two_stores_of_an_agent_stay_two(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="gardener")
    def run(add: bool) -> list[list[str]]:
        first, second = InMemoryVectorStore(EMBEDDER), InMemoryVectorStore(EMBEDDER)
        if add:
            first.add_texts(["tree"])
            second.add_texts(["flower"])
        return [texts_of(first), texts_of(second)]

    assert run(True) == run(False) == [["tree"], ["flower"]]


def test_the_store_behaves_as_before(fake_kernel: KernelHandle, tmp_path: Path) -> None:
    """The same operations inside and outside of an agent give the same, and what it wrote is what is kept."""

    def script(store: InMemoryVectorStore) -> list[Any]:
        ids = [f"id-{n}" for n in range(20)]
        store.add_texts([f"text {n % 7}" for n in range(20)], [{"n": n} for n in range(20)], ids=ids)
        store.add_documents([Document("anew", id="id-3", metadata={"n": 3}), Document("more", id="id-20")])
        store.delete(["id-4", "id-5", "never there"])
        store.delete()
        vector = EMBEDDER.embed_query("text 2")
        store.dump(str(tmp_path / "dump.json"))
        return [
            store.similarity_search_with_score("text 2", k=3),
            store.similarity_search("text 2", k=4, filter=lambda document: document.metadata.get("n", 0) > 9),
            store.similarity_search_by_vector(vector, k=2),
            store.similarity_search_with_score_by_vector(vector, k=2),
            store.max_marginal_relevance_search("text 2", k=3, fetch_k=10),
            store.get_by_ids(["id-3", "id-4", "id-20"]),
            store.as_retriever(search_type="mmr", search_kwargs={"k": 2}).invoke("text 2"),
            len(InMemoryVectorStore.load(str(tmp_path / "dump.json"), EMBEDDER).store),
            sorted(store.store),
        ]

    expected = script(InMemoryVectorStore(EMBEDDER))
    assert aios.agent(script, name="same")(InMemoryVectorStore(EMBEDDER)) == expected

    @aios.agent(name="same")
    def later() -> list[str]:
        store = InMemoryVectorStore(EMBEDDER)
        assert store.get_by_ids(["id-3"]) == expected[5][:1]
        return sorted(store.store)

    assert later() == expected[-1]


def test_each_access_is_one_syscall(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="gardener")
    def run() -> None:
        store = InMemoryVectorStore(EMBEDDER)
        store.add_texts(PLANTS)
        store.similarity_search("moss")
        store.max_marginal_relevance_search("moss")
        store.add_texts(["another"])

    run()
    assert kept_calls(fake_kernel) == ["storage.list", "storage.put", "storage.list", "storage.list", "storage.put"]


def test_the_programs_embedder_stays_and_openais_is_the_kernels(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="gardener")
    def run() -> str:
        store = InMemoryVectorStore.from_texts(PLANTS, OpenAIEmbeddings(check_embedding_ctx_length=False))
        return store.similarity_search("red roses", k=1)[0].page_content

    assert run() == "red roses"
    assert "llm.embed" in {span.syscall for span in fake_kernel.spans()}


def test_documents_added_while_no_agent_was_on(fake_kernel: KernelHandle) -> None:
    def built() -> InMemoryVectorStore:
        return InMemoryVectorStore.from_texts(PLANTS, EMBEDDER)

    @aios.agent(name="gardener")
    def read(store: InMemoryVectorStore) -> list[str]:
        return texts_of(store)

    assert read(built()) == sorted(PLANTS)
    assert read(built()) == sorted(PLANTS), "a later process builds its index anew, before its agent"
    assert read(InMemoryVectorStore(EMBEDDER)) == sorted(PLANTS)


def test_another_process_writes_meanwhile(fake_kernel: KernelHandle) -> None:
    """Two working copies of one space, as two processes have them."""
    one, two = InMemoryVectorStore(EMBEDDER), InMemoryVectorStore(EMBEDDER)

    def on(store: InMemoryVectorStore, act: Callable[[InMemoryVectorStore], Any]) -> Any:
        return aios.agent(act, name="gardener")(store)

    on(one, lambda store: store.add_texts(["oak", "moss"], ids=["1", "2"]))
    assert on(two, texts_of) == ["moss", "oak"]
    on(two, lambda store: store.delete(["1"]))
    on(two, lambda store: store.add_texts(["fern"], ids=["2"]))
    assert on(one, texts_of) == ["fern"]
    on(one, lambda store: store.add_texts(["rose"], ids=["1"]))
    assert on(two, texts_of) == ["fern", "rose"]


def test_many_writes_are_put_together(fake_kernel: KernelHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_copy, "_MOST_FILES", 5)
    other = InMemoryVectorStore(EMBEDDER)

    @aios.agent(name="gardener")
    def write() -> None:
        store = InMemoryVectorStore(EMBEDDER)
        for n in range(8):
            store.add_texts([f"text {n}"], ids=[str(n)])
        store.delete(["3"])

    @aios.agent(name="gardener")
    def read(store: InMemoryVectorStore) -> list[str]:
        return sorted(store.store) if store.similarity_search("x", k=1) else []

    write()
    left = [str(n) for n in range(8) if n != 3]
    assert read(other) == left
    seen = len(fake_kernel.spans())
    assert read(InMemoryVectorStore(EMBEDDER)) == left
    assert [s.syscall for s in fake_kernel.spans()[seen:] if s.syscall.startswith("storage.get")] == ["storage.get"]
    assert read(other) == left, "a copy that had read the files goes on"


async def test_many_at_once(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="gardener")
    async def write() -> int:
        store = InMemoryVectorStore(EMBEDDER)
        await asyncio.gather(*(store.aadd_texts([f"async {n}"]) for n in range(20)))
        with ThreadPoolExecutor(4) as pool:
            scope = aios.current()
            assert scope is not None

            def add(n: int) -> None:
                with scope.on():
                    store.add_texts([f"thread {n}"])

            await asyncio.gather(*(asyncio.get_running_loop().run_in_executor(pool, add, n) for n in range(20)))
        return len(store.store)

    @aios.agent(name="gardener")
    def read() -> int:
        return len(texts_of(InMemoryVectorStore(EMBEDDER)))

    assert await write() == 40
    assert read() == 40


def test_metadata_that_cannot_be_written(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="gardener")
    def run() -> int:
        store = InMemoryVectorStore(EMBEDDER)
        with pytest.raises(errors.Unsupported, match="metadata"):
            store.add_documents([Document("code", metadata={"f": lambda: None}), Document("plain")])
        return len(store.similarity_search("x", k=5))

    assert run() == 2


@pytest.mark.parametrize(
    ("mode", "calls"), [("mediated", ["memory.add", "memory.search", "memory.search"]), ("off", [])]
)
def test_the_decorators_word_counts(fake_kernel: KernelHandle, mode: Any, calls: list[str]) -> None:
    def run() -> int:
        store = InMemoryVectorStore(EMBEDDER)
        store.add_texts(PLANTS)
        store.similarity_search("moss")
        return len(store.max_marginal_relevance_search("moss", k=2))

    assert aios.agent(run, name="memo", memory=mode)() == 2
    assert kept_calls(fake_kernel) == calls


@pytest.fixture
def chroma() -> Any:
    """The class of langchain-chroma, the durable store of most programs: chromadb's files are its own."""
    return pytest.importorskip("langchain_chroma").Chroma


async def test_a_chroma_collection_stays_where_it_is(fake_kernel: KernelHandle, tmp_path: Path, chroma: Any) -> None:

    @aios.agent(name="gardener")
    async def run() -> list[Any]:
        store = chroma("plants", EMBEDDER, persist_directory=str(tmp_path / "chroma"))
        ids = store.add_texts(PLANTS, [{"n": n} for n in range(3)])
        await store.aadd_texts(["a fern"])
        found = [
            store.similarity_search("red roses", k=1)[0].page_content,
            (await store.asimilarity_search("red roses", k=1))[0].page_content,
            store.similarity_search_with_score("red roses", k=1)[0][0].page_content,
            store.as_retriever(search_kwargs={"k": 1}).invoke("wet moss")[0].page_content,
            store.get_by_ids([ids[0]])[0].page_content,
        ]
        store.delete(ids)
        return [*found, store._collection.count()]

    assert await run() == ["red roses", "red roses", "red roses", "wet moss", "a tall oak", 1]
    calls = kept_calls(fake_kernel)
    assert calls == ["memory.add"] * 2 + ["memory.search"] * 5 + ["memory.add"]
    (row,) = fake_kernel.ps()
    assert row.memory_calls == 8


def test_from_texts_of_a_durable_store_is_one_access(fake_kernel: KernelHandle, tmp_path: Path, chroma: Any) -> None:
    @aios.agent(name="gardener")
    def run() -> None:
        chroma.from_texts(PLANTS, EMBEDDER, persist_directory=str(tmp_path / "chroma"))

    run()
    assert kept_calls(fake_kernel) == ["memory.add"]


def test_a_store_of_the_programs_own_is_mediated(fake_kernel: KernelHandle) -> None:
    class Own(VectorStore):
        def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
            return [Document(query)]

        @classmethod
        def from_texts(cls, *args: Any, **kwargs: Any) -> Own:
            return cls()

    run = aios.agent(lambda: Own.from_texts([], EMBEDDER).similarity_search("x"), name="memo")
    assert run() == [Document("x")]
    assert kept_calls(fake_kernel) == ["memory.add", "memory.search"]


def test_the_kernels_own_store_is_not_counted_twice(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="memo")
    def run() -> None:
        KernelVectorStore().add_texts(["one"])
        KernelVectorStore().similarity_search("one")

    run()
    assert kept_calls(fake_kernel) == ["memory.add", "memory.search"]


def test_outside_of_agents_nothing_changes(fake_kernel: KernelHandle) -> None:
    store = InMemoryVectorStore.from_texts(PLANTS, EMBEDDER)
    assert len(store.similarity_search("x", k=10)) == 3
    assert kept_calls(fake_kernel) == []
