from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from pydantic import BaseModel

import aios_adapters as aios
from aios_adapters.testing import KernelHandle


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def asking(text: str) -> Any:
    return {"messages": [HumanMessage(text)]}


def build(name: str | None = None, **options: Any) -> Any:
    return create_agent(ChatOpenAI(model="gpt-4o"), [add], system_prompt="You add.", name=name, **options)


def llm_calls(kernel: KernelHandle) -> dict[str, int]:
    """LLM calls by agent, of all its runs."""
    calls: Counter[str] = Counter()
    for program in kernel.ps():
        calls[program.agent] += program.llm_calls
    return {agent: count for agent, count in calls.items() if count}


QUESTION = asking('call add {"a": 1, "b": 2}')


async def test_invoke_and_ainvoke(fake_kernel: KernelHandle) -> None:
    graph = build()

    @aios.agent(name="sums")
    async def run() -> list[str]:
        return [graph.invoke(QUESTION)["messages"][-1].content, (await graph.ainvoke(QUESTION))["messages"][-1].content]

    assert await run() == ["tool said: 3"] * 2
    (program,) = fake_kernel.ps()
    assert (program.llm_calls, program.tool_calls) == (4, 2)


def test_stream_modes(fake_kernel: KernelHandle) -> None:
    graph = build()

    @aios.agent(name="sums")
    def run() -> Iterator[Any]:
        yield from graph.stream(asking("think 3"), stream_mode=["messages", "updates"])

    pieces = list(run())
    words = [chunk.text for mode, piece in pieces if mode == "messages" for chunk in piece[:1] if chunk.text]
    updates = [list(piece) for mode, piece in pieces if mode == "updates"]
    assert words == ["w0", " w1", " w2"]
    assert updates == [["model"]]


async def test_async_stream_and_events(fake_kernel: KernelHandle) -> None:
    graph = build()

    @aios.agent(name="sums")
    async def run() -> AsyncIterator[str]:
        async for chunk, _ in graph.astream(asking("think 3"), stream_mode="messages"):
            yield chunk.text

    assert [word async for word in run() if word] == ["w0", " w1", " w2"]

    @aios.agent(name="sums")
    async def events() -> list[str]:
        return [event["event"] async for event in graph.astream_events(QUESTION)]

    seen = await events()
    assert {"on_chat_model_start", "on_chat_model_stream", "on_tool_start", "on_tool_end"} <= set(seen)


async def test_a_wrapped_graph(fake_kernel: KernelHandle) -> None:
    graph: Any = aios.agent(build(), name="wrapped")

    assert isinstance(graph, type(build()))
    assert graph.invoke(QUESTION)["messages"][-1].content == "tool said: 3"
    assert (await graph.ainvoke(QUESTION))["messages"][-1].content == "tool said: 3"
    streamed = [chunk.text for chunk, _ in graph.stream(asking("think 3"), stream_mode="messages")]
    assert [word for word in streamed if word] == ["w0", " w1", " w2"]
    streamed = [chunk.text async for chunk, _ in graph.astream(asking("think 2"), stream_mode="messages")]
    assert [word for word in streamed if word] == ["w0", " w1"]
    assert {program.agent for program in fake_kernel.ps()} == {"wrapped"}


def test_a_class(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="classy")
    class Assistant:
        def __init__(self) -> None:
            self.graph = build()

        def answer(self, text: str) -> str:
            return self.graph.invoke(asking(text))["messages"][-1].content

    assert Assistant().answer("say hi") == "hi"
    assert llm_calls(fake_kernel) == {"classy": 1}


async def test_names_that_create_agent_was_given(fake_kernel: KernelHandle) -> None:
    first, second = build("first"), build("second")

    @aios.agent(name="team")
    async def run() -> None:
        await asyncio.gather(first.ainvoke(QUESTION), second.ainvoke(asking("say hi")))
        first.invoke(asking("say bye"))
        ChatOpenAI(model="gpt-4o").invoke("say done")

    await run()
    assert llm_calls(fake_kernel) == {"team": 1, "team/first": 3, "team/second": 1}
    tools = {program.agent: program.tool_calls for program in fake_kernel.ps() if program.tool_calls}
    assert tools == {"team/first": 1}
    names = {program.agent: program for program in fake_kernel.ps()}
    assert names["team/first"].framework == "langchain"
    assert names["team/first"].parent == names["team"].program


def test_an_agent_as_a_tool_of_another(fake_kernel: KernelHandle) -> None:
    helper = build("helper")

    @tool
    def ask_helper(text: str) -> str:
        """Ask the helper."""
        return helper.invoke(asking(text))["messages"][-1].content

    boss = create_agent(ChatOpenAI(model="gpt-4o"), [ask_helper], name="boss")

    @aios.agent(name="office")
    def run() -> str:
        return boss.invoke(asking('call ask_helper {"text": "say hello"}'))["messages"][-1].content

    assert run() == "tool said: hello"
    assert llm_calls(fake_kernel) == {"office/boss": 2, "office/helper": 1}


def test_a_decorated_agent_as_a_tool_of_a_named_one(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="expert")
    def expert(text: str) -> str:
        return ChatOpenAI(model="gpt-4o").invoke(text).text

    @tool
    def ask_expert(text: str) -> str:
        """Ask the expert."""
        return expert(text)

    boss = create_agent(ChatOpenAI(model="gpt-4o"), [ask_expert], name="boss")

    @aios.agent(name="office")
    def run() -> str:
        return boss.invoke(asking('call ask_expert {"text": "say hello"}'))["messages"][-1].content

    assert run() == "tool said: hello"
    assert llm_calls(fake_kernel) == {"office/boss": 2, "office/expert": 1}


async def test_two_agents_at_the_same_time(fake_kernel: KernelHandle) -> None:
    graph = build()

    def agent(name: str) -> Any:
        async def run() -> str:
            return (await graph.ainvoke(QUESTION))["messages"][-1].content

        return aios.agent(run, name=name)

    await asyncio.gather(*(agent(name)() for name in ("ann", "bob")))
    assert llm_calls(fake_kernel) == {"ann": 2, "bob": 2}


def test_two_agents_in_threads(fake_kernel: KernelHandle) -> None:
    graph, barrier = build(), threading.Barrier(2)

    def agent(name: str) -> Any:
        def run() -> str:
            barrier.wait(10)
            return graph.invoke(QUESTION)["messages"][-1].content

        return aios.agent(run, name=name)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda name: agent(name)(), ("ann", "bob"))) == ["tool said: 3"] * 2
    assert llm_calls(fake_kernel) == {"ann": 2, "bob": 2}


class City(BaseModel):
    name: str
    people: int


def test_response_format_of_an_agent(fake_kernel: KernelHandle) -> None:
    agent = build(response_format=City)

    @aios.agent(name="structured")
    def run() -> Any:
        return agent.invoke(asking('json {"name": "Oslo", "people": 7}'))["structured_response"]

    assert run() == City(name="Oslo", people=7)


class State(TypedDict):
    messages: Annotated[list[Any], add_messages]


def test_a_plain_graph_with_parallel_nodes(fake_kernel: KernelHandle) -> None:
    model = ChatOpenAI(model="gpt-4o")
    builder: Any = StateGraph(State)
    for word in ("left", "right"):
        builder.add_node(word, lambda state, word=word: {"messages": [model.invoke(f"say {word}")]})
        builder.add_edge(START, word)
        builder.add_edge(word, END)
    graph = builder.compile()

    @aios.agent(name="plain")
    def run() -> set[str]:
        return {message.content for message in graph.invoke(asking("go"))["messages"]}

    assert run() == {"go", "left", "right"}
    assert llm_calls(fake_kernel) == {"plain": 2}


async def test_leaving_a_graphs_stream_stops_the_generation(fake_kernel: KernelHandle) -> None:
    graph = build()

    @aios.agent(name="left")
    async def run() -> None:
        stream = graph.astream(asking("ponder"), stream_mode="messages")
        async for chunk, _ in stream:
            if isinstance(chunk, AIMessageChunk) and chunk.text:
                break
        await stream.aclose()

    await run()
    assert await asyncio.to_thread(
        fake_kernel.wait_for,
        lambda: [span.outcome for span in fake_kernel.spans() if span.syscall == "llm.chat"] == ["cancelled"],
    )


async def test_the_functional_api(fake_kernel: KernelHandle) -> None:
    model = ChatOpenAI(model="gpt-4o")

    @task
    def say(word: str) -> str:
        return model.invoke(f"say {word}").text

    @entrypoint(checkpointer=InMemorySaver())
    def both(words: list[str]) -> list[str]:
        return [future.result() for future in [say(word) for word in words]]

    @aios.agent(name="functional")
    async def run() -> list[list[str]]:
        threads: list[Any] = [{"configurable": {"thread_id": str(n)}} for n in range(2)]
        return [both.invoke(["a", "b"], threads[0]), await both.ainvoke(["c", "d"], threads[1])]

    assert await run() == [["a", "b"], ["c", "d"]]
    assert llm_calls(fake_kernel) == {"functional": 4}


def test_subgraphs_and_their_checkpoints(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="outer")
    def run(text: str) -> list[str]:
        builder: Any = StateGraph(State)
        builder.add_node("inner", create_agent(ChatOpenAI(model="gpt-4o"), [add], name="inner", checkpointer=True))
        builder.add_edge(START, "inner")
        graph = builder.compile(checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": "1"}}
        return [message.content for message in graph.invoke(asking(text), config)["messages"]]

    assert run("say a") == ["say a", "a"]
    assert run("say b") == ["say a", "a", "say b", "b"]
    assert llm_calls(fake_kernel) == {"outer/inner": 2}
