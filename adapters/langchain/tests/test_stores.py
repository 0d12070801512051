from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.config import get_store
from langgraph.store.base import BaseStore, GetOp, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel import errors


def memory_calls(kernel: KernelHandle) -> list[str]:
    return [span.syscall for span in kernel.spans() if span.syscall.startswith("memory.")]


class Forbidden(DeterministicFakeEmbedding):
    """The embedder that a program was written with; the kernel's takes its place."""

    size: int = 8

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError("embedded elsewhere")

    embed_query = embed_documents  # type: ignore[assignment]


def indexed(**options: Any) -> InMemoryStore:
    return InMemoryStore(index={"dims": 8, "embed": Forbidden(size=8), **options})


async def test_items_survive_their_store(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="keeper")
    def write() -> None:
        store = InMemoryStore()
        store.put(("users", "1"), "prefs", {"theme": "dark", "n": [1, {"a": None}]})
        store.put(("users", "2"), "prefs", {"theme": "light"})

    @aios.agent(name="keeper")
    async def read() -> Any:
        store = InMemoryStore()
        return store.get(("users", "1"), "prefs"), await store.aget(("users", "2"), "prefs"), store.get(("x",), "y")

    write()
    first, second, missing = await read()
    assert first.value == {"theme": "dark", "n": [1, {"a": None}]}
    assert (first.namespace, first.key) == (("users", "1"), "prefs")
    assert isinstance(first.created_at, datetime)
    assert second.value == {"theme": "light"}
    assert missing is None
    assert memory_calls(fake_kernel) == ["memory.add"] * 2 + ["memory.get"] * 3


def test_agents_have_items_of_their_own(fake_kernel: KernelHandle) -> None:
    def write(value: int) -> None:
        InMemoryStore().put(("a",), "k", {"v": value})

    def read() -> Any:
        return InMemoryStore().get(("a",), "k")

    aios.agent(write, name="ann")(1)
    assert aios.agent(read, name="bob")() is None
    assert aios.agent(read, name="ann")().value == {"v": 1}


def test_the_store_behaves_as_before(fake_kernel: KernelHandle) -> None:
    """The same operations inside and outside of an agent give the same."""

    def script(store: BaseStore) -> list[Any]:
        seen: list[Any] = []
        for n in range(6):
            store.put(("docs", str(n % 2)), f"d{n}", {"n": n, "even": n % 2 == 0, "deep": {"x": n}})
        store.put(("docs", "0"), "d0", {"n": 100, "even": True, "deep": {"x": 100}})
        store.delete(("docs", "1"), "d3")
        seen.append(store.search(("docs",)))
        seen.append(store.search(("docs", "1")))
        seen.append(store.search(("docs",), limit=2, offset=1))
        seen.append(store.search(("docs",), filter={"even": True}))
        seen.append(store.search(("docs",), filter={"n": {"$gte": 4}}))
        seen.append(store.search(("docs",), filter={"deep": {"x": 2}}))
        seen.append(store.search(("docs",), query="ignored without an index", limit=3))
        seen.append(store.search(("doc",)))
        seen.append(store.list_namespaces())
        seen.append(store.list_namespaces(prefix=("docs",), max_depth=1))
        seen.append(store.list_namespaces(suffix=("1",)))
        batch = [PutOp(("b",), "k", {"v": 1}), GetOp(("b",), "k"), PutOp(("b",), "k", {"v": 2}), SearchOp(("b",))]
        seen.append(store.batch(batch))
        seen.append(store.batch([GetOp(("b",), "k")]))
        return [_shown(entry) for entry in seen]

    inside = aios.agent(script, name="same")
    expected = script(InMemoryStore())
    assert inside(InMemoryStore()) == expected

    @aios.agent(name="same")
    def again() -> Any:
        """A later process: what is left is listed in the same order."""
        return _shown(InMemoryStore().search(("docs",)))

    assert again() == expected[0]


def _shown(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_shown(item) for item in entry]
    return (entry.namespace, entry.key, entry.value, getattr(entry, "score", None)) if hasattr(entry, "key") else entry


def test_an_unchanged_item_stays_itself(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="same")
    def run() -> bool:
        store = InMemoryStore()
        store.put(("a",), "k", {"v": 1})
        return store.get(("a",), "k") is store.get(("a",), "k")

    assert run()


async def test_search_by_meaning_is_the_kernels(fake_kernel: KernelHandle) -> None:
    notes = {"tea": "she drinks green tea", "dog": "the dog is called Rex", "car": "the car is red"}

    @aios.agent(name="finder")
    def write() -> None:
        store = indexed(fields=["text"])
        for key, text in notes.items():
            store.put(("facts", "u1"), key, {"text": text, "kind": "animal" if key == "dog" else "thing"})
        store.put(("facts", "u1"), "hidden", {"text": "her dog", "kind": "thing"}, index=False)
        store.put(("other",), "dog", {"text": "a dog called Max"})

    @aios.agent(name="finder")
    async def read() -> list[Any]:
        store = indexed(fields=["text"])
        return [
            store.search(("facts",), query="what is the dog called", limit=2),
            await store.asearch(("facts",), query="what is the dog called", filter={"kind": "thing"}),
            store.search(("facts",), query="what is the dog called", limit=1, offset=1),
            store.search(("facts",), limit=10),
        ]

    write()
    best, things, second, every = await read()
    assert best[0].key == "dog"
    assert best[0].score > best[1].score > 0
    assert {item.key for item in things} == {"tea", "car", "hidden"}
    assert things[-1].key == "hidden"
    assert things[-1].score is None
    assert second[0].key == best[1].key
    assert [item.key for item in every] == ["tea", "dog", "car", "hidden"]


def test_items_put_while_no_agent_was_on(fake_kernel: KernelHandle) -> None:
    store = InMemoryStore(index={"dims": 8, "embed": DeterministicFakeEmbedding(size=8)})
    store.put(("facts",), "tea", {"text": "she drinks green tea"})
    store.put(("facts",), "dog", {"text": "the dog is called Rex"})

    @aios.agent(name="finder")
    def read() -> tuple[Any, Any]:
        return store.get(("facts",), "tea"), store.search(("facts",), query="the dog is called", limit=1)

    tea, found = read()
    assert tea.value == {"text": "she drinks green tea"}
    assert [item.key for item in found] == ["dog"]


def test_the_last_writer_wins(fake_kernel: KernelHandle) -> None:
    store = InMemoryStore()

    @aios.agent(name="writer")
    def write(value: int) -> None:
        store.put(("a",), "k", {"v": value})

    @aios.agent(name="writer")
    def read() -> Any:
        return store.get(("a",), "k").value["v"]

    write(1)
    store.put(("a",), "k", {"v": 2})
    assert read() == 2
    write(3)
    assert read() == 3
    assert store.get(("a",), "k").value == {"v": 3}


def test_values_that_json_has_not(fake_kernel: KernelHandle) -> None:
    value = {"when": datetime(2026, 1, 2), "pair": (1, 2), "message": HumanMessage("hi"), 3: float("inf")}

    @aios.agent(name="typed")
    def write(value: Any) -> None:
        InMemoryStore().put(("a",), "k", value)

    @aios.agent(name="typed")
    def read() -> Any:
        return InMemoryStore().get(("a",), "k").value

    write(value)
    back = read()
    assert back["when"] == value["when"]
    assert list(back["pair"]) == [1, 2]
    assert back["message"] == value["message"]
    assert back[3] == float("inf")
    with pytest.raises(errors.Unsupported, match="msgpack"):
        write({"code": lambda: None})


def test_a_store_inside_a_graph(fake_kernel: KernelHandle) -> None:
    @tool
    def remember(text: str) -> str:
        """Remember."""
        get_store().put(("notes",), "last", {"text": text})
        return "ok"

    @tool
    def recall() -> str:
        """Recall."""
        item = get_store().get(("notes",), "last")
        return item.value["text"] if item else "nothing"

    @aios.agent(name="team")
    def run(question: str) -> str:
        agent = create_agent(ChatOpenAI(model="gpt-4o"), [remember, recall], store=InMemoryStore(), name="memo")
        messages = agent.invoke({"messages": [HumanMessage(question)]})["messages"]
        return next(message.content for message in messages if isinstance(message, ToolMessage))

    assert run("call recall {}") == "nothing"
    run('call remember {"text": "tea"}')
    assert run("call recall {}") == "tea"
    calls = {program.agent: program.memory_calls for program in fake_kernel.ps() if program.memory_calls}
    assert set(calls) == {"team/memo"}


class Elsewhere(BaseStore):
    """A store with a place of its own."""

    def __init__(self) -> None:
        self.inner = InMemoryStore()

    def batch(self, ops: Any) -> Any:
        return self.inner.batch(ops)

    async def abatch(self, ops: Any) -> Any:
        return await asyncio.to_thread(self.batch, list(ops))


async def test_a_store_that_lives_elsewhere_is_counted(fake_kernel: KernelHandle) -> None:
    store = Elsewhere()

    @aios.agent(name="elsewhere")
    async def run() -> Any:
        store.put(("a",), "k", {"v": 1})
        return await store.aget(("a",), "k")

    assert (await run()).value == {"v": 1}
    assert memory_calls(fake_kernel) == ["memory.search"] * 2
    assert store.inner.get(("a",), "k") is not None


@pytest.mark.parametrize(("mode", "count"), [("mediated", 2), ("off", 0)])
def test_the_decorators_word_counts(fake_kernel: KernelHandle, mode: Any, count: int) -> None:
    def run() -> Any:
        store = InMemoryStore()
        store.put(("a",), "k", {"v": 1})
        return store.get(("a",), "k").value

    assert aios.agent(run, name="memo", memory=mode)() == {"v": 1}
    assert memory_calls(fake_kernel) == ["memory.search"] * count
