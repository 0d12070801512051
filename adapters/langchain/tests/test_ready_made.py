"""The ready-made classes: whose what they keep is, that it lasts, and what they refuse."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import HumanMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel

import aios_adapters as aios
from aios_adapter_langchain import (
    KernelByteStore,
    KernelChatModel,
    KernelCheckpointSaver,
    KernelEmbeddings,
    KernelStore,
    KernelVectorStore,
)
from aios_adapters.testing import KernelHandle
from aios_kernel.errors import AccessDenied, AiosError, ConfigError, InvalidRequest, Unsupported


def double(n: int) -> int:
    """Double a number."""
    return 2 * n


def test_an_agent_of_ready_made_parts(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="maker")
    def ask(text: str, thread: str) -> list[Any]:
        agent = create_agent(KernelChatModel(), [double], checkpointer=KernelCheckpointSaver(), store=KernelStore())
        config: Any = {"configurable": {"thread_id": thread}}
        return agent.invoke({"messages": [HumanMessage(text)]}, config)["messages"]

    assert ask('call double {"n": 4}', "1")[-1].text == "tool said: 8"
    assert [message.type for message in ask("say again", "1")] == ["human", "ai", "tool", "ai", "human", "ai"]
    rows = fake_kernel.ps()
    assert {row.agent for row in rows} == {"maker"}
    assert sum(row.llm_calls for row in rows) == 3
    assert sum(row.tool_calls for row in rows) == 1
    assert sum(row.storage_calls for row in rows) > 0


def test_without_a_decorator_they_have_an_agent_of_their_own(fake_kernel: KernelHandle) -> None:
    assert KernelChatModel(agent="alone").invoke("say hi").text == "hi"
    assert KernelChatModel(agent="alone").invoke("say ho").text == "ho"
    KernelByteStore(agent="alone").mset([("k", b"v")])
    (row,) = fake_kernel.ps()
    assert (row.agent, row.framework, row.llm_calls, row.storage_calls) == ("alone", "langchain", 2, 1)


@pytest.mark.parametrize(
    "use",
    [
        lambda: KernelChatModel().invoke("hi"),
        lambda: KernelByteStore().mget(["k"]),
        lambda: KernelStore().get(("a",), "k"),
        lambda: KernelEmbeddings().embed_query("x"),
        lambda: KernelVectorStore().similarity_search("x"),
        lambda: KernelCheckpointSaver().get_tuple({"configurable": {"thread_id": "1"}}),
    ],
)
def test_a_kernel_that_is_off_is_an_error(monkeypatch: pytest.MonkeyPatch, use: Callable[[], Any]) -> None:
    monkeypatch.setenv("AIOS_KERNEL", "off")
    with pytest.raises(ConfigError, match="switched off"):
        use()


def test_agents_do_not_see_each_others(fake_kernel: KernelHandle) -> None:
    saver, store, files, papers = KernelCheckpointSaver(), KernelStore(), KernelByteStore(), KernelVectorStore()
    graph = counting().compile(checkpointer=saver)
    thread: Any = {"configurable": {"thread_id": "1"}}
    with aios.running("one"):
        graph.invoke({"n": 1}, thread)
        store.put(("a",), "k", {"v": 1})
        files.mset([("k", b"v")])
        papers.add_texts(["a paper"])
    with aios.running("two"):
        assert saver.get_tuple(thread) is None
        assert store.get(("a",), "k") is None
        assert files.mget(["k"]) == [None]
        assert papers.similarity_search("a paper") == []
    with aios.running("one"):
        assert graph.get_state(thread).values == {"n": 3}
        assert store.get(("a",), "k").value == {"v": 1}  # type: ignore[union-attr]
        assert files.mget(["k"]) == [b"v"]
        assert [document.page_content for document in papers.similarity_search("a paper")] == ["a paper"]


class Count(TypedDict):
    n: int


def counting() -> Any:
    graph: Any = StateGraph(Count)
    graph.add_node("first", lambda state: {"n": state["n"] + 1})
    graph.add_node("second", lambda state: {"n": state["n"] + 1})
    graph.add_edge(START, "first")
    graph.add_edge("first", "second")
    graph.add_edge("second", END)
    return graph


def test_pruned_threads_go_on(fake_kernel: KernelHandle) -> None:
    graph = counting().compile(checkpointer=KernelCheckpointSaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    for _ in range(3):
        graph.invoke({"n": 5}, config)
    KernelCheckpointSaver().prune(["1"])
    again = counting().compile(checkpointer=KernelCheckpointSaver())
    assert len(list(again.get_state_history(config))) == 1
    assert again.get_state(config).values == {"n": 7}
    assert again.invoke({"n": 1}, config) == {"n": 3}
    with pytest.raises(InvalidRequest, match="pruning"):
        KernelCheckpointSaver().prune(["1"], strategy="half")


def joined(state: list[str], writes: Any) -> list[str]:
    return [*state, *(text for write in writes for text in write)]


class Notes(TypedDict):
    notes: Annotated[list[str], DeltaChannel(joined, snapshot_frequency=50)]


def test_pruning_keeps_what_delta_channels_are_made_of(fake_kernel: KernelHandle) -> None:
    graph: Any = StateGraph(Notes)
    graph.add_node("add", lambda state: {"notes": [f"seen {len(state['notes'])}"]})
    graph.add_edge(START, "add")
    config: Any = {"configurable": {"thread_id": "1"}}
    compiled = graph.compile(checkpointer=KernelCheckpointSaver())
    for number in range(3):
        compiled.invoke({"notes": [f"note {number}"]}, config)
    before = compiled.get_state(config).values
    assert len(before["notes"]) == 6
    KernelCheckpointSaver().prune(["1"])
    assert graph.compile(checkpointer=KernelCheckpointSaver()).get_state(config).values == before


def test_a_store_is_searched_by_meaning(fake_kernel: KernelHandle) -> None:
    store = KernelStore("facts", fields=["text"])
    for key, text in {"a": "kiwi costs twelve", "b": "the weather is fine", "c": "zebra runs"}.items():
        store.put(("facts",), key, {"text": text, "kind": key})
    found = KernelStore("facts", fields=["text"]).search(("facts",), query="what does a kiwi cost", limit=1)
    assert [item.key for item in found] == ["a"]
    assert found[0].score is not None
    assert [item.key for item in store.search(("facts",), filter={"kind": "c"})] == ["c"]
    assert KernelStore("other").search(("facts",)) == []


PAPERS = {"kiwi": "kiwi costs twelve", "kiwi2": "kiwi costs eleven", "sun": "the weather is fine"}


def test_a_vector_store(fake_kernel: KernelHandle) -> None:
    kinds = [{"kind": id[:3]} for id in PAPERS]
    papers = KernelVectorStore.from_texts([*PAPERS.values()], KernelEmbeddings(), kinds, ids=[*PAPERS])
    assert [document.id for document in papers.similarity_search("kiwi twelve", k=1)] == ["kiwi"]
    scored = papers.similarity_search_with_relevance_scores("kiwi twelve", k=3)
    assert [round(score, 6) for _, score in scored] == sorted((round(s, 6) for _, s in scored), reverse=True)
    assert all(0 <= score <= 1 for _, score in scored)
    assert [document.id for document in papers.similarity_search("kiwi", filter={"kind": "sun"})] == ["sun"]
    varied = papers.max_marginal_relevance_search("kiwi twelve", k=2, lambda_mult=0.1)
    assert [document.id for document in varied] == ["kiwi", "sun"]
    retriever = papers.as_retriever(search_kwargs={"k": 2})
    assert [document.metadata for document in retriever.invoke("kiwi")] == [{"kind": "kiw"}] * 2
    assert papers.delete() is True
    assert papers.similarity_search("kiwi") == []


async def test_a_vector_store_async(fake_kernel: KernelHandle) -> None:
    papers = await KernelVectorStore.afrom_texts([*PAPERS.values()], ids=[*PAPERS])
    assert {document.id for document in await papers.asimilarity_search("kiwi", k=2)} == {"kiwi", "kiwi2"}
    assert len(await papers.amax_marginal_relevance_search("kiwi", k=2)) == 2
    await papers.aadd_documents([Document("kiwi costs ten", id="kiwi")])
    assert [document.page_content for document in await papers.aget_by_ids(["kiwi", "gone"])] == ["kiwi costs ten"]


def test_what_a_vector_store_refuses(fake_kernel: KernelHandle) -> None:
    papers = KernelVectorStore()
    with pytest.raises(Unsupported, match="DeterministicFakeEmbedding"):
        KernelVectorStore.from_texts(["a"], DeterministicFakeEmbedding(size=3))
    with pytest.raises(Unsupported, match="where"):
        papers.similarity_search("x", where={"a": 1})
    with pytest.raises(InvalidRequest, match="2 texts"):
        papers.add_texts(["a", "b"], [{}])
    with pytest.raises(InvalidRequest, match="empty"):
        papers.similarity_search("")
    with pytest.raises(AiosError):
        papers.add_texts(["a"], [{"when": object()}])
    with pytest.raises(AccessDenied):
        KernelVectorStore(namespace="agent/somebody/notes").add_texts(["a"])


KEYS = [
    "",
    "a",
    "a/b",
    "a/b/c",
    "..",
    ".",
    "_",
    "ü" * 100,
    "x" * 200,
    "x" * 201,
    "x" * 400,
    "a b%2F",
    "\n",
    str(uuid.uuid4()),
]


def test_any_key_is_a_key(fake_kernel: KernelHandle) -> None:
    store = KernelByteStore()
    store.mset([(key, key.encode()) for key in KEYS])
    assert store.mget(KEYS) == [key.encode() for key in KEYS]
    assert sorted(store.yield_keys()) == sorted(KEYS)
    assert sorted(store.yield_keys(prefix="a/")) == ["a/b", "a/b/c"]
    store.mdelete(["a", "x" * 200])
    assert sorted(store.yield_keys()) == sorted(set(KEYS) - {"a", "x" * 200})
    with pytest.raises(InvalidRequest, match="longer"):
        store.mset([("x" * 2000, b"")])
    assert list(KernelByteStore("other").yield_keys()) == []


class City(BaseModel):
    name: str
    people: int


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
def test_structured_output(fake_kernel: KernelHandle, method: Any) -> None:
    text = {
        "json_schema": "x",
        "json_mode": 'json {"name": "Bonn", "people": 3}',
        "function_calling": 'call City {"name": "Bonn", "people": 3}',
    }
    wanted = City(name="text", people=1) if method == "json_schema" else City(name="Bonn", people=3)
    model = KernelChatModel()
    assert model.with_structured_output(City, method=method).invoke(text[method]) == wanted
    raw = model.with_structured_output(City, method=method, include_raw=True).invoke(text[method])
    assert (raw["parsed"], raw["parsing_error"]) == (wanted, None)
    if method == "json_mode":
        broken = model.with_structured_output(City, method=method, include_raw=True).invoke('json {"name": 1}')
        assert broken["parsed"] is None
        assert broken["parsing_error"] is not None


def test_sampling_reaches_the_kernel(fake_kernel: KernelHandle) -> None:
    answer = KernelChatModel(max_tokens=2, seed=1, temperature=0.5).invoke("think 9")
    assert (answer.text, answer.response_metadata["finish_reason"]) == ("w0 w1", "length")
    assert KernelChatModel(stop=["w2"]).invoke("think 9").text == "w0 w1 "
    with pytest.raises(Unsupported, match="usage_metadata"):
        KernelChatModel().get_num_tokens("x")
