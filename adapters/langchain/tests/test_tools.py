from __future__ import annotations

import asyncio
import threading
import time
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool, Tool, ToolException, tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import InjectedState, ToolRuntime
from pydantic import ValidationError

import aios_adapters as aios
from aios_adapters import host
from aios_adapters.hookspecs import hookimpl
from aios_adapters.testing import KernelHandle
from aios_kernel import errors
from aios_kernel.syscalls import LlmChat
from aios_kernel.tools.grants import ToolGrants


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
async def aadd(a: int, b: int) -> int:
    """Add two numbers, slowly."""
    await asyncio.sleep(0)
    return a + b


@tool
def fail(why: str) -> str:
    """Always fail."""
    raise ValueError(why)


def call(tool: BaseTool, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_call", "id": "call-1", "name": tool.name, "args": arguments}


def tool_runs(kernel: KernelHandle) -> list[tuple[str, str]]:
    return [(span.detail, span.outcome) for span in kernel.spans() if span.syscall == "tool.run"]


def begun(kernel: KernelHandle) -> int:
    return sum(program.tool_calls for program in kernel.ps())


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses tools called "add": what an access rule will do."""
    real = ToolGrants.begin

    def guarded(self: ToolGrants, program: str, call: Any, *args: Any, **kwargs: Any) -> Any:
        if call.name == "add":
            raise errors.AccessDenied('the tool "add" is not allowed')
        return real(self, program, call, *args, **kwargs)

    monkeypatch.setattr(ToolGrants, "begin", guarded)


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that gives tools little time; to be asked for before `fake_kernel`."""
    monkeypatch.setenv("AIOS_TOOL_TIMEOUT_S", "0.05")


async def test_every_call_passes_once(fake_kernel: KernelHandle) -> None:
    plain = Tool("plain", lambda text: text.upper(), "Shout.")

    @aios.agent(name="tools")
    async def use() -> list[Any]:
        answers = [add.invoke({"a": 1, "b": 2}), await add.ainvoke({"a": 3, "b": 4})]
        answers.append(await aadd.ainvoke({"a": 5, "b": 6}))
        answers.append(plain.invoke("hey"))
        return answers

    assert await use() == [3, 7, 11, "HEY"]
    assert fake_kernel.wait_for(lambda: len(tool_runs(fake_kernel)) == 4)
    assert tool_runs(fake_kernel) == [("add", "ok"), ("add", "ok"), ("aadd", "ok"), ("plain", "ok")]
    assert begun(fake_kernel) == 4


@pytest.mark.parametrize("odd", [float("nan"), "\ud800", {1: {2}}, "x" * 5_000_000], ids=["nan", "half", "set", "long"])
def test_arguments_that_json_has_not(fake_kernel: KernelHandle, odd: Any) -> None:
    @tool
    def take(what: Any) -> bool:
        """Take anything."""
        return what is odd

    @aios.agent(name="tools")
    def use() -> bool:
        return take.invoke({"what": odd})

    assert use()
    assert begun(fake_kernel) == 1


def test_a_late_class_with_its_own_methods(fake_kernel: KernelHandle) -> None:
    class Base(BaseTool):
        name: str = "late"
        description: str = "Younger than the adapter."

        def _run(self, text: str) -> str:
            return f"base {text}"

    class Derived(Base):
        def _run(self, text: str) -> str:
            return "derived " + super()._run(text)

    @aios.agent(name="tools")
    def use() -> str:
        return Derived().invoke({"text": "x"})

    assert use() == "derived base x"
    assert begun(fake_kernel) == 1


def test_a_tool_that_uses_tools(fake_kernel: KernelHandle) -> None:
    @tool
    def twice(a: int) -> int:
        """Double."""
        return add.invoke({"a": a, "b": a})

    @aios.agent(name="tools")
    def use() -> int:
        return twice.invoke({"a": 4})

    assert use() == 8
    assert fake_kernel.wait_for(lambda: len(tool_runs(fake_kernel)) == 2)
    assert [name for name, _ in tool_runs(fake_kernel)] == ["add", "twice"]


async def test_a_tools_own_errors_are_untouched(fake_kernel: KernelHandle) -> None:
    handled = StructuredTool.from_function(
        lambda why: (_ for _ in ()).throw(ToolException(why)), name="handled", description="x", handle_tool_error=True
    )

    @aios.agent(name="tools")
    async def use() -> Any:
        with pytest.raises(ValueError, match="because"):
            fail.invoke({"why": "because"})
        with pytest.raises(ValueError, match="because"):
            await fail.ainvoke({"why": "because"})
        with pytest.raises(ValidationError):
            add.invoke({"a": "no number", "b": 1})
        return handled.invoke(call(handled, why="gently"))

    answer = await use()
    assert (answer.content, answer.status) == ("gently", "error")
    assert fake_kernel.wait_for(lambda: len(tool_runs(fake_kernel)) == 3)
    assert tool_runs(fake_kernel) == [("fail", "tool"), ("fail", "tool"), ("handled", "tool")]


def test_artifacts_and_injected_state_stay(fake_kernel: KernelHandle) -> None:
    seen: list[str] = []

    @tool(response_format="content_and_artifact")
    def look(key: str, state: Annotated[dict[str, Any], InjectedState]) -> tuple[str, list[int]]:
        """Look something up."""
        seen.append(state["messages"][0].content)
        return f"found {key}", [1, 2]

    agent = create_agent(ChatOpenAI(model="gpt-4o"), [look])

    @aios.agent(name="tools")
    def use() -> Any:
        return agent.invoke({"messages": [HumanMessage('call look {"key": "k"}')]})["messages"]

    result = next(message for message in use() if isinstance(message, ToolMessage))
    assert (result.content, result.artifact) == ("found k", [1, 2])
    assert seen == ['call look {"key": "k"}']


async def test_what_langchain_injects_is_there_and_is_not_shown(fake_kernel: KernelHandle) -> None:
    @tool
    def inspect(
        text: str, config: RunnableConfig, runtime: ToolRuntime, call_id: Annotated[str, InjectedToolCallId]
    ) -> str:
        """Look at what is injected."""
        return f"{text} {config['configurable']['user']} {runtime.state['messages'][0].type} {bool(call_id)}"

    sent: list[str] = []

    class Listening:
        @hookimpl
        def aios_llm_request(self, call: LlmChat) -> None:
            sent.extend(str(spec.parameters["properties"]) for spec in call.tools)

    agent = create_agent(ChatOpenAI(model="gpt-4o"), [inspect])

    @aios.agent(name="tools")
    async def use() -> list[str]:
        inputs: Any = {"messages": [HumanMessage('call inspect {"text": "hi"}')]}
        config: Any = {"configurable": {"user": "ann"}}
        states = [agent.invoke(inputs, config), await agent.ainvoke(inputs, config)]
        return [state["messages"][-1].content for state in states]

    listening = Listening()
    host().register(listening)
    try:
        assert await use() == ["tool said: hi ann human True"] * 2
    finally:
        host().unregister(listening)
    assert all("text" in shown and "config" not in shown and "call_id" not in shown for shown in sent)


async def test_a_refusal_comes_back_to_the_model(fake_kernel: KernelHandle, refusing: None) -> None:
    agent = create_agent(ChatOpenAI(model="gpt-4o"), [add])
    question = {"messages": [HumanMessage('call add {"a": 1, "b": 2}')]}

    @aios.agent(name="tools")
    async def use() -> list[Any]:
        return [agent.invoke(question)["messages"], (await agent.ainvoke(question))["messages"]]

    for messages in await use():
        refused = next(message for message in messages if isinstance(message, ToolMessage))
        assert refused.status == "error"
        assert 'the tool "add" is not allowed' in refused.content
        assert messages[-1].content.startswith("tool said: ")


def test_a_refusal_that_no_model_asked_for_is_raised(fake_kernel: KernelHandle, refusing: None) -> None:
    class Listener(BaseCallbackHandler):
        events: list[str] = []

        def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
            self.events.append("start")

        def on_tool_error(self, error: BaseException, **kwargs: Any) -> None:
            self.events.append(type(error).__name__)

    polite = StructuredTool.from_function(lambda: 1, name="add", description="x", handle_tool_error="not today")

    @aios.agent(name="tools")
    def use() -> Any:
        with pytest.raises(ToolException, match="not allowed") as refused:
            add.invoke({"a": 1, "b": 2}, {"callbacks": [Listener()]})
        assert isinstance(refused.value, errors.AccessDenied)
        return polite.invoke({})

    assert use() == "not today"
    assert Listener.events == ["start", "ToolDenied"]


def test_a_denial_inside_a_tool_is_its_own_error(fake_kernel: KernelHandle) -> None:
    @tool
    def peek() -> str:
        """Read what belongs to somebody else."""
        raise errors.AccessDenied("that is not yours")

    @aios.agent(name="tools")
    def use() -> None:
        with pytest.raises(errors.AccessDenied) as refused:
            peek.invoke(call(peek))
        assert not isinstance(refused.value, ToolException)

    use()


async def test_a_tool_that_hangs(short_limit: None, fake_kernel: KernelHandle) -> None:
    released = threading.Event()
    cancelled: list[bool] = []

    @tool
    def hang() -> str:
        """Never answer."""
        released.wait()
        return "late"

    @tool
    async def ahang() -> str:
        """Never answer."""
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return "late"

    @aios.agent(name="tools")
    async def use() -> list[Any]:
        began = time.monotonic()
        messages = [await asyncio.to_thread(hang.invoke, call(hang)), await ahang.ainvoke(call(ahang))]
        assert time.monotonic() - began < 5
        with pytest.raises(errors.ToolTimeout):
            await ahang.ainvoke({})
        return messages

    try:
        for message in await use():
            assert message.status == "error"
            assert "did not end within 0.05 s" in message.content
    finally:
        released.set()
    assert cancelled == [True, True]


async def test_all_calls_of_a_turn_run(fake_kernel: KernelHandle) -> None:
    agent = create_agent(ChatOpenAI(model="gpt-4o"), [add, aadd])
    question = 'call add {"a": 1, "b": 2}\ncall aadd {"a": 3, "b": 4}\ncall add {"a": 5, "b": 6}'

    @aios.agent(name="tools")
    async def use() -> str:
        return (await agent.ainvoke({"messages": [HumanMessage(question)]}))["messages"][-1].content

    assert await use() == "tool said: 3 | 7 | 11"
    assert begun(fake_kernel) == 3


def test_arguments_may_have_any_name(fake_kernel: KernelHandle) -> None:
    @tool
    def names(scope: str, original: str, tool: str, model: str) -> str:
        """Names that our own wrappers use too."""
        return " ".join([scope, original, tool, model])

    with aios.running("names"):
        assert names.invoke({"scope": "a", "original": "b", "tool": "c", "model": "d"}) == "a b c d"
