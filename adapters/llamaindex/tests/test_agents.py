"""Agents of the framework, unmodified: what they answer, and under which name they call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from llama_index.core.agent.workflow import (
    AgentOutput,
    AgentStream,
    AgentWorkflow,
    FunctionAgent,
    ReActAgent,
    ToolCallResult,
)
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from llama_index.llms.openai import OpenAI

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel.syscalls import ProgramInfo

# The workflow looks at every attribute of an agent, its model's deprecated ones too.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    # ReActAgent's own use of the workflow's context.
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]

CALLS = 'call add {"a": 1, "b": 2}\ncall add {"a": 3, "b": 4}'


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def broken(a: int) -> int:
    """Fail."""
    raise ValueError(f"cannot do {a}")


def rows(kernel: KernelHandle) -> dict[str, ProgramInfo]:
    assert kernel.wait_for(lambda: all(row.state == "finished" for row in kernel.ps()))
    return {row.agent: row for row in kernel.ps()}


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_function_agent_runs_all_calls_of_a_turn(fake_kernel: KernelHandle, streaming: bool) -> None:
    @aios.agent(name="calc")
    async def main(question: str) -> AgentOutput:
        agent = FunctionAgent(tools=[add], llm=OpenAI(model="gpt-4o"), streaming=streaming)
        return await agent.run(question)

    output = await main(CALLS)
    assert output.response.content == "tool said: 3 | 7"
    assert [call.tool_kwargs for call in output.tool_calls] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    row = rows(fake_kernel)["calc"]
    assert (row.framework, row.llm_calls, row.tool_calls, row.error) == ("llamaindex", 2, 2, None)
    assert row.memory_calls > 0


async def test_events_are_streamed_while_the_agent_runs(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="streamer")
    async def main() -> AsyncGenerator[Any, None]:
        handler = FunctionAgent(tools=[add], llm=OpenAI(model="gpt-4o")).run("say one two three")
        async for event in handler.stream_events():
            yield event
        yield await handler

    events = [event async for event in main()]
    deltas = [event.delta for event in events if isinstance(event, AgentStream) and event.delta]
    assert len(deltas) == 3
    assert "".join(deltas) == "one two three"
    assert str(events[-1]) == "one two three"
    assert rows(fake_kernel)["streamer"].state == "finished"


async def test_a_handler_that_is_returned_keeps_its_program(fake_kernel: KernelHandle) -> None:
    agent = FunctionAgent(tools=[add], llm=OpenAI(model="gpt-4o"))

    @aios.agent(name="starter")
    def start(question: str) -> Any:
        return agent.run(question)

    handler = start(CALLS)
    seen = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
    assert [event.tool_output.raw_output for event in seen] == [3, 7]
    assert str(await handler) == "tool said: 3 | 7"
    assert rows(fake_kernel)["starter"].error is None


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_built_agent_as_an_object(fake_kernel: KernelHandle, streaming: bool) -> None:
    agent = aios.agent(
        FunctionAgent(name="inner", tools=[add], llm=OpenAI(model="gpt-4o"), streaming=streaming), name="object"
    )
    handler = agent.run(CALLS)
    async for _ in handler.stream_events():
        pass
    assert str(await handler) == "tool said: 3 | 7"
    table = rows(fake_kernel)
    assert table["object/inner"].llm_calls == 2
    assert table["object/inner"].tool_calls == 2
    assert table["object/inner"].parent == table["object"].program


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_react_agent(fake_kernel: KernelHandle, streaming: bool) -> None:
    @aios.agent(name="react")
    async def main() -> AgentOutput:
        agent = ReActAgent(name="thinker", tools=[add], llm=MockLLM(), streaming=streaming)
        # The fake model repeats what it is told, which makes this an action, and its observation the answer.
        return await agent.run('please\nThought: I add.\nAction: add\nAction Input: {"a": 1, "b": 2}')

    assert str(await main()) == "echo: Observation: 3"
    row = rows(fake_kernel)["react/thinker"]
    assert (row.llm_calls, row.tool_calls) == (2, 1)


async def test_a_react_agent_answers(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="react")
    async def main() -> AgentOutput:
        agent = ReActAgent(tools=[add], llm=OpenAI(model="gpt-4o"), streaming=False)
        return await agent.run("say Thought: easy. Answer: 42")

    assert str(await main()) == "42"


async def test_a_tool_that_raises_is_told_to_the_model(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="broken")
    async def main() -> AgentOutput:
        return await FunctionAgent(tools=[broken], llm=OpenAI(model="gpt-4o")).run('call broken {"a": 5}')

    assert str(await main()) == "tool said: cannot do 5"
    outcomes = [span.outcome for span in fake_kernel.spans() if span.syscall == "tool.run"]
    assert len(outcomes) == 1
    assert outcomes != ["ok"]


class Sum(BaseModel):
    """A sum."""

    total: int


async def test_output_cls(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="typed")
    async def main() -> AgentOutput:
        agent = FunctionAgent(tools=[add], llm=OpenAI(model="gpt-4o"), output_cls=Sum)
        return await agent.run('json {"total": 3}')

    output = await main()
    assert output.get_pydantic_model(Sum) is not None
    assert rows(fake_kernel)["typed"].llm_calls == 2


def team() -> AgentWorkflow:
    llm = OpenAI(model="gpt-4o")
    return AgentWorkflow(
        agents=[
            FunctionAgent(name="first", description="starts", tools=[add], llm=llm, can_handoff_to=["second"]),
            FunctionAgent(name="second", description="ends", tools=[add], llm=llm, output_cls=Sum),
        ],
        root_agent="first",
    )


async def test_each_agent_of_a_workflow_has_its_name(fake_kernel: KernelHandle) -> None:
    workflow = aios.agent(team(), name="team")
    handler = workflow.run('call handoff {"to_agent": "second", "reason": "tired"}', memory=Memory.from_defaults())
    names = [event.current_agent_name async for event in handler.stream_events() if isinstance(event, AgentOutput)]
    assert names == ["first", "second"]
    assert str(await handler).startswith(("tool said", "handoff", "echo", "Agent"))
    table = rows(fake_kernel)
    assert (table["team/first"].llm_calls, table["team/first"].tool_calls) == (1, 1)
    assert table["team/second"].llm_calls >= 1
    assert table["team/first"].memory_calls > 0
    assert table["team/second"].memory_calls > 0
    assert "team" not in table or table["team"].llm_calls == table["team"].tool_calls == 0
    # One memory, shared by the agents that share the object.
    spaces = {span.detail for span in fake_kernel.spans() if span.syscall.startswith("memory.")}
    assert len(spaces) == 1
    assert spaces.pop().startswith("agent/team/llamaindex/memory/")


async def test_a_workflow_whose_agent_has_no_name(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="single")
    async def main() -> Any:
        workflow = AgentWorkflow.from_tools_or_functions([add], llm=OpenAI(model="my-own-model"))
        return await workflow.run(CALLS)

    assert str(await main()) == "tool said: 3 | 7"
    assert list(rows(fake_kernel)) == ["single"]


async def test_two_agents_at_once_keep_their_names(fake_kernel: KernelHandle) -> None:
    agent = FunctionAgent(tools=[add], llm=OpenAI(model="gpt-4o"))

    def named(name: str) -> Any:
        @aios.agent(name=name)
        async def main(question: str) -> str:
            return str(await agent.run(question))

        return main

    answers = await asyncio.gather(*(named(f"agent{n}")(f'call add {{"a": {n}, "b": 1}}') for n in range(5)))
    assert answers == [f"tool said: {n + 1}" for n in range(5)]
    table = rows(fake_kernel)
    assert set(table) == {f"agent{n}" for n in range(5)}
    assert all((row.llm_calls, row.tool_calls) == (2, 1) for row in table.values())


def test_agents_in_threads_keep_their_names(fake_kernel: KernelHandle) -> None:
    answers: dict[str, str] = {}

    def work(name: str) -> None:
        @aios.agent(name=name)
        async def main() -> str:
            return str(await FunctionAgent(tools=[add], llm=OpenAI(model="gpt-4o")).run(CALLS))

        answers[name] = asyncio.run(main())

    threads = [threading.Thread(target=work, args=(f"thread{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {f"thread{n}": "tool said: 3 | 7" for n in range(3)}
    assert all((row.llm_calls, row.tool_calls) == (2, 2) for row in rows(fake_kernel).values())


async def test_cancelling_an_agent_stops_its_generation(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="cancelled")
    async def main() -> Any:
        return await FunctionAgent(tools=[add], llm=OpenAI(model="gpt-4o")).run("ponder")

    task = asyncio.create_task(main())
    running = lambda: any(row.state == "running" for row in fake_kernel.ps())  # noqa: E731 - a condition to wait for
    assert await asyncio.to_thread(fake_kernel.wait_for, running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fake_kernel.wait_for(lambda: fake_kernel.ps()[0].state == "finished")
    assert [span.outcome for span in fake_kernel.spans() if span.syscall == "llm.chat"] == ["cancelled"]


class Pipeline(Workflow):
    """A workflow of the user's own."""

    @step
    async def ask(self, ev: StartEvent) -> StopEvent:
        """Ask once."""
        return StopEvent(result=(await MockLLM().acomplete(ev.question)).text)


async def test_a_workflow_of_the_users_own(fake_kernel: KernelHandle) -> None:
    pipeline = aios.agent(Pipeline(), name="pipeline")
    assert await pipeline.run(question="say done") == "done"
    assert rows(fake_kernel)["pipeline"].llm_calls == 1


@pytest.mark.parametrize("kind", [Memory, ChatMemoryBuffer])
async def test_a_memory_carries_the_conversation(fake_kernel: KernelHandle, kind: Any) -> None:
    agent, memory = FunctionAgent(tools=[add], llm=OpenAI(model="gpt-4o")), kind.from_defaults(token_limit=3000)

    @aios.agent(name="talk")
    async def main(question: str) -> None:
        await agent.run(question, memory=memory)

    await main("say one")
    await main("say two")
    # Read outside a scope, as the program would without us.
    assert [message.content for message in await memory.aget_all()] == ["say one", "one", "say two", "two"]


async def test_a_run_starts_with_an_empty_memory(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="fresh")
    async def main() -> int:
        agent = FunctionAgent(tools=[add], llm=OpenAI(model="gpt-4o"))
        await agent.run("say one")
        output = agent.run("say two")
        await output
        memory = await output.ctx.store.get("memory")
        return len(await memory.aget_all())

    assert await main() == 2
    assert await main() == 2


def test_a_chat_engine_as_an_object(fake_kernel: KernelHandle) -> None:
    engine = aios.agent(SimpleChatEngine.from_defaults(llm=OpenAI(model="gpt-4o")), name="engine")
    assert engine.chat("say one").response == "one"
    assert "".join(engine.stream_chat("say two three").response_gen) == "two three"
    assert [m.content for m in engine.chat_history] == ["say one", "one", "say two three", "two three"]
    assert fake_kernel.wait_for(lambda: all(row.state == "finished" for row in fake_kernel.ps()))
    assert sum(row.llm_calls for row in fake_kernel.ps()) == 2


async def test_a_chat_engine_streaming_in_the_background(fake_kernel: KernelHandle) -> None:
    engine = aios.agent(SimpleChatEngine.from_defaults(llm=OpenAI(model="gpt-4o")), name="engine")
    assert (await engine.achat("say one")).response == "one"
    response = await engine.astream_chat("say two three")
    assert "".join([token async for token in response.async_response_gen()]) == "two three"
    assert len(engine.chat_history) == 4
    done = lambda: all(row.state == "finished" for row in fake_kernel.ps())  # noqa: E731 - a condition to wait for
    assert await asyncio.to_thread(fake_kernel.wait_for, done)


async def test_a_class_of_the_users_own(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="clerk")
    class Clerk:
        def __init__(self) -> None:
            self.agent = FunctionAgent(name="helper", tools=[add], llm=OpenAI(model="gpt-4o"))

        async def work(self) -> str:
            return str(await self.agent.run(CALLS))

    assert await Clerk().work() == "tool said: 3 | 7"
    assert rows(fake_kernel)["clerk/helper"].tool_calls == 2
