"""Every tool call passes the kernel once, and ends as AutoGen's users expect."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import TaskResult
from autogen_agentchat.tools import AgentTool
from autogen_core import CancellationToken
from autogen_core.tools import (
    BaseStreamTool,
    FunctionTool,
    StaticStreamWorkbench,
    StaticWorkbench,
    TextResultContent,
    ToolResult,
    ToolSchema,
    Workbench,
)
from autogen_core.tools._workbench import StreamWorkbench
from autogen_ext.models.openai import OpenAIChatCompletionClient
from pydantic import BaseModel

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel import errors


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def greet(name: str) -> str:
    """Greet somebody."""
    await asyncio.sleep(0)
    return f"hello {name}"


def explode(text: str) -> str:
    """Fail."""
    raise ValueError(f"boom {text}")


async def hang() -> str:
    """Never come back."""
    await asyncio.sleep(60)
    return "late"


ADD = FunctionTool(add, description="Add two numbers.")


def calls(kernel: KernelHandle) -> list[tuple[str, str, str]]:
    """Agent, tool and outcome of every tool call."""
    return [(span.agent, span.detail, span.outcome) for span in kernel.spans() if span.syscall == "tool.run"]


def granted(kernel: KernelHandle) -> int:
    return sum(row.tool_calls for row in kernel.ps())


async def test_all_calls_of_a_turn_run(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    agent = AssistantAgent("helper", client, tools=[add, greet])
    with aios.running("alice"):
        result = await agent.run(task='call add {"a": 1, "b": 2}\ncall greet {"name": "bob"}')
    assert result.messages[-1].to_text() == "3\nhello bob"  # type: ignore[union-attr]
    assert sorted(calls(fake_kernel)) == [("alice/helper", "add", "ok"), ("alice/helper", "greet", "ok")]
    assert granted(fake_kernel) == 2


async def test_plain_and_async_functions_know_their_agent(
    fake_kernel: KernelHandle, client: OpenAIChatCompletionClient
) -> None:
    def plain(text: str) -> str:
        """Runs in a thread of an executor."""
        aios.memory.add(text)
        return threading.current_thread().name

    async def later(text: str) -> str:
        """Runs on the loop."""
        await aios.memory.aadd(text)
        return "done"

    agent = AssistantAgent("helper", client, tools=[plain, later])
    with aios.running("alice"):
        result = await agent.run(task='call plain {"text": "a"}\ncall later {"text": "b"}')
    assert threading.main_thread().name not in result.messages[-1].to_text()  # type: ignore[union-attr]
    assert [row.memory_calls for row in fake_kernel.ps() if row.agent == "alice/helper"] == [2]


async def test_reflection_sees_the_results(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    agent = AssistantAgent("helper", client, tools=[add], reflect_on_tool_use=True, model_client_stream=True)
    with aios.running("alice"):
        result = await agent.run(task='call add {"a": 1, "b": 2}')
    assert result.messages[-1].to_text() == "tool said: 3"  # type: ignore[union-attr]


async def test_what_a_tool_raises_is_its_own(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    tool = FunctionTool(explode, description="Fail.")
    with aios.running("alice"):
        with pytest.raises(ValueError, match="boom x"):
            await tool.run_json({"text": "x"}, CancellationToken())
        result = await StaticWorkbench([tool]).call_tool("explode", {"text": "y"})
        agent = AssistantAgent("helper", client, tools=[tool])
        answer = await agent.run(task='call explode {"text": "z"}')
    assert result == ToolResult(name="explode", result=[TextResultContent(content="boom y")], is_error=True)
    assert answer.messages[-1].to_text() == "boom z"  # type: ignore[union-attr]
    assert [outcome for _, _, outcome in calls(fake_kernel)] == ["tool"] * 3


async def test_outside_a_scope_no_tool_is_counted(fake_kernel: KernelHandle) -> None:
    assert await ADD.run_json({"a": 1, "b": 2}, CancellationToken()) == 3
    assert (await StaticWorkbench([ADD]).call_tool("add", {"a": 1, "b": 2})).to_text() == "3"
    assert fake_kernel.ps() == []


async def test_a_tool_that_hangs_is_a_tool_error(fake_kernel: KernelHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aios.Scope, "acall", _with_short_grants(aios.Scope.acall))
    tool = FunctionTool(hang, description="Hang.")
    with aios.running("alice"):
        result = await StaticWorkbench([tool]).call_tool("hang", {})
        other = await OwnTools([tool]).call_tool("hang", {})
    assert result.is_error
    assert other.is_error
    assert "did not end within 0.05 s" in result.to_text()
    assert "did not end within 0.05 s" in other.to_text()


def _with_short_grants(acall: Any) -> Any:
    """A kernel's grant with a limit that a test can wait for."""

    async def short(self: aios.Scope, call: Any, answer: Any, **kwargs: Any) -> Any:
        if type(call).__name__ == "ToolBegin":
            call = type(call)(call.name, call.arguments, call.call_id, 0.05)
        return await acall(self, call, answer, **kwargs)

    return short


async def test_a_refused_tool_is_a_tool_error(fake_kernel: KernelHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    async def refuse(self: aios.Scope, call: Any, answer: Any, **kwargs: Any) -> Any:
        raise errors.AccessDenied("not for you")

    monkeypatch.setattr(aios.Scope, "acall", refuse)
    tool = FunctionTool(lambda: ran.append("x"), name="secret", description="Secret.")
    with aios.running("alice"):
        results = [
            await StaticWorkbench([tool]).call_tool("secret", {}),
            await OwnTools([tool]).call_tool("secret", {}),
            [item async for item in OwnStream().call_tool_stream("secret", {})][-1],
        ]
    assert [result.is_error for result in results] == [True] * 3
    assert all("not for you" in result.to_text() for result in results)
    assert ran == []


async def test_cancelling_reaches_the_tool(fake_kernel: KernelHandle, until: Any) -> None:
    token = CancellationToken()
    workbench = StaticWorkbench([FunctionTool(hang, description="Hang.")])
    with aios.running("alice"):
        call = asyncio.ensure_future(workbench.call_tool("hang", {}, token))
        await until("tool")
        token.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: len(calls(fake_kernel)) == 1)


# --- workbenches ----------------------------------------------------------------------------------------------------


class OwnTools(Workbench):
    """A workbench written by a user, on top of AutoGen's tools."""

    component_type = "workbench"

    def __init__(self, tools: list[Any]) -> None:
        self._tools = {tool.name: tool for tool in tools}

    async def list_tools(self) -> list[ToolSchema]:
        return [tool.schema for tool in self._tools.values()]

    async def call_tool(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
        call_id: str | None = None,
    ) -> ToolResult:
        value = await self._tools[name].run_json(arguments or {}, cancellation_token or CancellationToken())
        return ToolResult(name=name, result=[TextResultContent(content=str(value))], is_error=False)

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def reset(self) -> None: ...
    async def save_state(self) -> Mapping[str, Any]:
        return {}

    async def load_state(self, state: Mapping[str, Any]) -> None: ...


class OwnStream(OwnTools, StreamWorkbench):
    def __init__(self, tools: list[Any] | None = None) -> None:
        super().__init__(tools or [])

    async def call_tool_stream(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
        call_id: str | None = None,
    ) -> AsyncGenerator[Any, None]:
        yield "working"
        yield await self.call_tool(name, arguments, cancellation_token, call_id)


class Audited(StaticWorkbench):
    """Adds to the call and leaves the rest to its base."""

    async def call_tool(self, name: str, *args: Any, **kwargs: Any) -> ToolResult:
        result = await super().call_tool(name, *args, **kwargs)
        return result.model_copy(update={"name": f"audited {name}"})


@pytest.mark.parametrize("workbench", [StaticWorkbench([ADD]), OwnTools([ADD]), Audited([ADD]), OwnStream([ADD])])
async def test_a_workbenchs_call_is_counted_once(fake_kernel: KernelHandle, workbench: Workbench) -> None:
    with aios.running("alice"):
        result = await workbench.call_tool(name="add", arguments={"a": 2, "b": 3}, call_id="7")
    assert result.to_text() == "5"
    assert calls(fake_kernel) == [("alice", "add", "ok")]
    assert granted(fake_kernel) == 1


@pytest.mark.parametrize("workbench", [StaticStreamWorkbench([ADD]), OwnStream([ADD])])
async def test_a_streaming_call_is_counted_once(fake_kernel: KernelHandle, workbench: StreamWorkbench) -> None:
    with aios.running("alice"):
        items = [item async for item in workbench.call_tool_stream("add", {"a": 2, "b": 3})]
    assert items[-1].to_text() == "5"
    assert len(items) == (1 if isinstance(workbench, StaticStreamWorkbench) else 2)
    assert calls(fake_kernel) == [("alice", "add", "ok")]
    assert granted(fake_kernel) == 1


# --- streaming tools ------------------------------------------------------------------------------------------------


class CountArgs(BaseModel):
    to: int


class Number(BaseModel):
    value: int


class Counting(BaseStreamTool[CountArgs, Number, Number]):
    def __init__(self) -> None:
        super().__init__(CountArgs, Number, "count", "Count.")

    async def run(self, args: CountArgs, cancellation_token: CancellationToken) -> Number:
        return Number(value=args.to)

    async def run_stream(self, args: CountArgs, cancellation_token: CancellationToken) -> AsyncGenerator[Number, None]:
        for value in range(args.to):
            if value == 13:
                raise RuntimeError("thirteen")
            yield Number(value=value)


async def test_a_streaming_tool(fake_kernel: KernelHandle) -> None:
    tool = Counting()
    with aios.running("alice"):
        values = [item.value async for item in tool.run_json_stream({"to": 3}, CancellationToken())]
        with pytest.raises(RuntimeError, match="thirteen"):
            async for _ in tool.run_json_stream({"to": 20}, CancellationToken()):
                pass
        through = [item async for item in StaticStreamWorkbench([tool]).call_tool_stream("count", {"to": 2})]
    assert values == [0, 1, 2]
    assert [type(item) for item in through] == [Number, ToolResult]
    assert [outcome for _, _, outcome in calls(fake_kernel)] == ["ok", "tool", "ok"]


async def test_a_streaming_tool_that_is_left(fake_kernel: KernelHandle, until: Any) -> None:
    tool = Counting()
    with aios.running("alice"):
        stream = tool.run_json_stream({"to": 5}, CancellationToken())
        assert (await anext(stream)).value == 0
        await stream.aclose()
    await until(lambda: len(calls(fake_kernel)) == 1)


async def test_an_agent_as_a_tool_keeps_its_name(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    adder = AssistantAgent("adder", client, tools=[add], description="Adds.")
    boss = AssistantAgent("boss", client, tools=[AgentTool(adder, return_value_as_last_message=True)])
    team = aios.agent(boss, name="office")
    result = await team.run(task='call adder {"task": "call add {\\"a\\": 1, \\"b\\": 2}"}')
    assert isinstance(result, TaskResult)
    assert result.messages[-1].to_text() == "3"  # type: ignore[union-attr]
    assert sorted(calls(fake_kernel)) == [("office/boss", "adder", "ok"), ("office/boss/adder", "add", "ok")]
    assert granted(fake_kernel) == 2
