from __future__ import annotations

import asyncio
import itertools
import operator
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel import errors

THREAD: Any = {"configurable": {"thread_id": "t/1"}}


def chatbot(saver: Any) -> Any:
    return create_agent(ChatOpenAI(model="gpt-4o"), [], checkpointer=saver)


def said(state: Any) -> list[str]:
    return [message.content for message in state["messages"]]


def asking(text: str) -> Any:
    return {"messages": [HumanMessage(text)]}


def syscalls(kernel: KernelHandle) -> list[str]:
    return [span.syscall for span in kernel.spans()]


class Count(TypedDict):
    steps: Annotated[list[str], operator.add]


def counter(saver: Any, *names: str, pause: str = "") -> Any:
    """A graph that writes its nodes' names one after the other, and asks before one of them."""

    def node(name: str) -> Any:
        def step(state: Count) -> Count:
            answer = interrupt(f"may I {name}?") if name == pause else name
            return {"steps": [answer]}

        return step

    builder: Any = StateGraph(Count)
    for before, name in zip((START, *names), names, strict=False):
        builder.add_node(name, node(name))
        builder.add_edge(before, name)
    builder.add_edge(names[-1], END)
    return builder.compile(checkpointer=saver)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_conversation_survives_its_saver(fake_kernel: KernelHandle, kind: str) -> None:
    """Each run builds a new saver, as each process does."""

    @aios.agent(name="memo")
    async def turn(text: str) -> list[str]:
        graph = chatbot(InMemorySaver())
        state = graph.invoke(asking(text), THREAD) if kind == "sync" else await graph.ainvoke(asking(text), THREAD)
        return said(state)

    assert await turn("say one") == ["say one", "one"]
    assert await turn("say two") == ["say one", "one", "say two", "two"]
    assert {"storage.put", "storage.get", "storage.list"} <= set(syscalls(fake_kernel))


def test_agents_have_memories_of_their_own(fake_kernel: KernelHandle) -> None:
    def turn(text: str) -> list[str]:
        return said(chatbot(InMemorySaver()).invoke(asking(text), THREAD))

    ann, bob = aios.agent(turn, name="ann"), aios.agent(turn, name="bob")
    ann("say secret")
    assert bob("say hi") == ["say hi", "hi"]
    assert ann("say more") == ["say secret", "secret", "say more", "more"]


def test_two_savers_of_one_agent_stay_apart(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="two")
    def run(text: str) -> tuple[list[str], list[str]]:
        first, second = chatbot(InMemorySaver()), chatbot(InMemorySaver())
        return (
            said(first.invoke(asking(f"say first {text}"), THREAD)),
            said(second.invoke(asking(f"say second {text}"), THREAD)),
        )

    run("a")
    first, second = run("b")
    assert first == ["say first a", "first a", "say first b", "first b"]
    assert second == ["say second a", "second a", "say second b", "second b"]


def test_what_was_written_is_there_outside_too(fake_kernel: KernelHandle) -> None:
    graph = chatbot(InMemorySaver())
    before = counter(InMemorySaver(), "a")
    before.invoke({"steps": ["outside"]}, THREAD)

    @aios.agent(name="memo")
    def turn(text: str) -> None:
        graph.invoke(asking(text), THREAD)

    @aios.agent(name="other")
    def inside() -> Any:
        return before.get_state(THREAD).values["steps"]

    turn("say one")
    assert said(graph.get_state(THREAD).values) == ["say one", "one"]
    assert inside() == ["outside", "a"]


def test_history_and_time_travel(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="travel")
    def first() -> None:
        counter(InMemorySaver(), "a", "b", "c").invoke({"steps": []}, THREAD)

    @aios.agent(name="travel")
    def later() -> tuple[list[Any], Any]:
        graph = counter(InMemorySaver(), "a", "b", "c")
        history = list(graph.get_state_history(THREAD))
        middle = next(state for state in history if state.next == ("c",))
        return history, graph.invoke(None, middle.config)

    first()
    history, replayed = later()
    assert [state.next for state in history] == [(), ("c",), ("b",), ("a",), ("__start__",)]
    assert [state.values.get("steps") for state in history][:2] == [["a", "b", "c"], ["a", "b"]]
    assert replayed == {"steps": ["a", "b", "c"]}
    assert all(
        state.parent_config["configurable"]["checkpoint_id"] == parent.config["configurable"]["checkpoint_id"]
        for state, parent in itertools.pairwise(history)
    )


async def test_interrupts_are_answered_by_a_later_run(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="careful")
    def start() -> Any:
        return counter(InMemorySaver(), "a", "b", pause="b").invoke({"steps": []}, THREAD)

    @aios.agent(name="careful")
    async def answer() -> Any:
        graph = counter(InMemorySaver(), "a", "b", pause="b")
        assert (await graph.aget_state(THREAD)).interrupts[0].value == "may I b?"
        return await graph.ainvoke(Command(resume="yes"), THREAD)

    assert start()["__interrupt__"][0].value == "may I b?"
    assert await answer() == {"steps": ["a", "yes"]}


def test_a_failed_step_goes_on_where_it_was(fake_kernel: KernelHandle) -> None:
    """The writes of the node that succeeded were put before the other one failed."""
    runs: list[str] = []

    def graph(broken: bool) -> Any:
        saver = InMemorySaver()

        def good(state: Count) -> Count:
            runs.append("good")
            time.sleep(0.05)  # so that its own thread submits its writes, outside of every context
            return {"steps": ["good"]}

        def bad(state: Count) -> Count:
            if broken:
                assert fake_kernel.wait_for(
                    lambda: "steps" in {w[1] for d in saver.writes.values() for w in d.values()}
                )
                raise RuntimeError("broken")
            return {"steps": ["bad"]}

        builder: Any = StateGraph(Count)
        for name, node in (("good", good), ("bad", bad)):
            builder.add_node(name, node)
            builder.add_edge(START, name)
        return builder.compile(checkpointer=saver)

    def writers(saver: InMemorySaver) -> set[str]:
        """The tasks that wrote steps: the input, and the good node."""
        return {write[0] for writes in saver.writes.values() for write in writes.values() if write[1] == "steps"}

    @aios.agent(name="resumed")
    def run(broken: bool, inputs: Any) -> Any:
        return graph(broken).invoke(inputs, THREAD)

    with pytest.raises(RuntimeError, match="broken"):
        run(True, {"steps": []})
    assert sorted(run(False, None)["steps"]) == ["bad", "good"]
    assert runs == ["good"]


async def test_deleting_a_thread(fake_kernel: KernelHandle) -> None:
    other: Any = {"configurable": {"thread_id": "t/10"}}

    @aios.agent(name="memo")
    async def run(*, delete: bool) -> list[Any]:
        saver = InMemorySaver()
        graph = counter(saver, "a")
        if delete:
            await saver.adelete_thread("t/1")
        else:
            for thread in (THREAD, other):
                graph.invoke({"steps": []}, thread)
        return [saver.get_tuple(THREAD) is None, saver.get_tuple(other) is None]

    assert await run(delete=False) == [False, False]
    assert await run(delete=True) == [True, False]
    assert await run(delete=True) == [True, False]


async def test_listing(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="memo")
    async def write() -> None:
        counter(InMemorySaver(), "a", "b").invoke({"steps": []}, THREAD)

    @aios.agent(name="memo")
    async def read() -> tuple[list[Any], list[Any], list[Any]]:
        saver = InMemorySaver()
        every = list(saver.list(None))
        newest = [item async for item in saver.alist(THREAD, limit=2)]
        loops = list(saver.list(THREAD, filter={"source": "input"}))
        return every, newest, loops

    await write()
    every, newest, inputs = await read()
    assert [item.metadata["step"] for item in every] == [2, 1, 0, -1]
    assert [item.metadata["step"] for item in newest] == [2, 1]
    assert [item.metadata["source"] for item in inputs] == ["input"]


async def test_each_access_counts_once(fake_kernel: KernelHandle) -> None:
    saver = InMemorySaver()

    @aios.agent(name="once")
    async def read() -> None:
        await saver.aget_tuple(THREAD)
        saver.get_tuple(THREAD)
        async for _ in saver.alist(THREAD):
            pass

    await read()
    assert syscalls(fake_kernel).count("storage.list") == 3


async def test_many_threads_of_one_saver(fake_kernel: KernelHandle) -> None:
    saver = InMemorySaver()

    @aios.agent(name="busy")
    async def run() -> list[Any]:
        graph = counter(saver, "a", "b")
        threads: list[Any] = [{"configurable": {"thread_id": f"user {n}"}} for n in range(8)]
        await asyncio.gather(*(graph.ainvoke({"steps": [str(n)]}, thread) for n, thread in enumerate(threads)))
        fresh = counter(InMemorySaver(), "a", "b")
        del fresh
        return [graph.get_state(thread).values["steps"] for thread in threads]

    assert await run() == [[str(n), "a", "b"] for n in range(8)]


def test_odd_thread_names(fake_kernel: KernelHandle) -> None:
    names = ["..", "ä" * 200, "a|b:c", "x\x7f", 7]

    @aios.agent(name="odd")
    def run(*, write: bool) -> list[Any]:
        graph = counter(InMemorySaver(), "a")
        threads: list[Any] = [{"configurable": {"thread_id": name}} for name in names]
        if write:
            for thread in threads:
                graph.invoke({"steps": [repr(thread["configurable"]["thread_id"])]}, thread)
        return [graph.get_state(thread).values["steps"][0] for thread in threads]

    assert run(write=True) == run(write=False) == [repr(name) for name in names]


def test_pickles_stay_out(fake_kernel: KernelHandle) -> None:
    saver = InMemorySaver(serde=JsonPlusSerializer(pickle_fallback=True))
    builder: Any = StateGraph(dict)
    builder.add_node("a", lambda state: {"value": _unknown_to_msgpack})
    builder.add_edge(START, "a")
    graph = builder.compile(checkpointer=saver)

    @aios.agent(name="pickling")
    def run() -> None:
        graph.invoke({"value": 1}, THREAD)

    with pytest.raises(errors.Unsupported, match="pickled"):
        run()

    @aios.agent(name="pickling", memory="mediated")
    def mediated() -> Any:
        return graph.invoke({"value": 1}, THREAD)["value"]

    assert mediated() is _unknown_to_msgpack


def _unknown_to_msgpack() -> None: ...


class Elsewhere(BaseCheckpointSaver[Any]):
    """A saver with a place of its own; its async methods use the sync ones, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = InMemorySaver()

    def get_tuple(self, config: Any) -> Any:
        return self.inner.get_tuple(config)

    async def aget_tuple(self, config: Any) -> Any:
        return self.get_tuple(config)

    def list(self, config: Any, **options: Any) -> Iterator[Any]:
        yield from self.inner.list(config, **options)

    async def alist(self, config: Any, **options: Any) -> AsyncIterator[Any]:
        for item in self.list(config, **options):
            yield item

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        return self.inner.put(config, checkpoint, metadata, new_versions)

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        return self.put(config, checkpoint, metadata, new_versions)

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        self.inner.put_writes(config, writes, task_id, task_path)

    async def aput_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        self.put_writes(config, writes, task_id, task_path)

    def get_next_version(self, current: Any, channel: None) -> Any:
        return self.inner.get_next_version(current, channel)


async def test_a_saver_that_lives_elsewhere_is_counted(fake_kernel: KernelHandle) -> None:
    saver = Elsewhere()

    @aios.agent(name="elsewhere")
    async def run() -> Any:
        state = await counter(saver, "a").ainvoke({"steps": []}, THREAD)
        await saver.aget_tuple(THREAD)
        saver.get_tuple(THREAD)
        assert [item async for item in saver.alist(THREAD, limit=1)] == list(saver.list(THREAD, limit=1))
        return state

    assert await run() == {"steps": ["a"]}
    calls = [span.syscall for span in fake_kernel.spans() if span.syscall.startswith("storage.")]
    assert set(calls) == {"storage.list"}
    (program,) = fake_kernel.ps()
    # the loop: one read, three checkpoints, two tasks' writes; then four reads of our own
    assert program.storage_calls == len(calls) == 10
    assert saver.inner.get_tuple(THREAD) is not None


@pytest.mark.parametrize(("mode", "expected"), [("mediated", {"storage.list"}), ("off", set())])
def test_the_decorators_word_counts(fake_kernel: KernelHandle, mode: Any, expected: set[str]) -> None:
    def turn(text: str) -> list[str]:
        return said(chatbot(InMemorySaver()).invoke(asking(text), THREAD))

    agent = aios.agent(turn, name="memo", memory=mode)
    assert agent("say one") == ["say one", "one"]
    assert agent("say two") == ["say two", "two"]
    assert {call for call in syscalls(fake_kernel) if call.startswith("storage.")} == expected


class OfOldTimes(Elsewhere):
    """As savers were before tasks had paths; LangGraph asks what a saver's methods take."""

    def put_writes(self, config: Any, writes: Any, task_id: str) -> None:  # type: ignore[override]
        self.inner.put_writes(config, writes, task_id)

    async def aput_writes(self, config: Any, writes: Any, task_id: str) -> None:  # type: ignore[override]
        self.put_writes(config, writes, task_id)


async def test_a_saver_that_takes_no_task_path_is_given_none(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="old")
    async def run() -> Any:
        state = counter(OfOldTimes(), "a").invoke({"steps": []}, THREAD)
        assert await counter(OfOldTimes(), "a").ainvoke({"steps": []}, THREAD) == state
        return state

    assert await run() == {"steps": ["a"]}
    (program,) = fake_kernel.ps()
    assert program.storage_calls > 0
