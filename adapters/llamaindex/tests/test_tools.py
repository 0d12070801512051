"""Every tool call passes the kernel exactly once, and ends as it would without it."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from llama_index.core.tools import (
    AsyncBaseTool,
    BaseTool,
    FunctionTool,
    ToolMetadata,
    ToolOutput,
    adapt_to_async_tool,
)
from llama_index.core.tools.calling import acall_tool, call_tool

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel.errors import ToolTimeout


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def aadd(a: int, b: int) -> int:
    """Add two numbers, later."""
    await asyncio.sleep(0)
    return a + b


def fail(why: str) -> str:
    """Fail."""
    raise ValueError(why)


class Delegating(AsyncBaseTool):
    """Its `acall` runs its `call` in a thread, as the framework's own tools do."""

    metadata = ToolMetadata(name="delegating", description="x")

    def call(self, input: str) -> ToolOutput:
        return ToolOutput(tool_name="delegating", content=input.upper(), raw_input={"input": input})

    async def acall(self, input: str) -> ToolOutput:
        return await asyncio.to_thread(self.call, input)


class Plain(BaseTool):
    """A tool of the oldest kind."""

    metadata = ToolMetadata(name="plain", description="x")

    def __call__(self, input: Any) -> ToolOutput:
        return ToolOutput(tool_name="plain", content=f"plain {input}", raw_input={"input": input})


def ran(kernel: KernelHandle) -> list[str]:
    return [span.detail for span in kernel.spans() if span.syscall == "tool.begin"]


async def test_function_tools_sync_and_async(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="tools")
    async def run() -> list[Any]:
        sync, later = FunctionTool.from_defaults(add), FunctionTool.from_defaults(async_fn=aadd)
        return [
            sync(a=1, b=2).raw_output,
            sync.call(1, 3).raw_output,
            (await sync.acall(a=1, b=4)).raw_output,
            later.call(a=1, b=5).raw_output,
            (await later.acall(a=1, b=6)).raw_output,
        ]

    assert await run() == [3, 4, 5, 6, 7]
    assert ran(fake_kernel) == ["add", "add", "add", "aadd", "aadd"]
    assert fake_kernel.ps()[0].tool_calls == 5


async def test_other_tools_are_counted_once(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="kinds")
    async def run() -> list[str]:
        return [
            (await Delegating().acall("a")).content,
            Delegating()("b").content,
            Plain()("c").content,
            (await adapt_to_async_tool(Plain()).acall("d")).content,
            (await acall_tool(Plain(), {"input": "e"})).content,
            call_tool(Delegating(), {"input": "f"}).content,
        ]

    assert await run() == ["A", "B", "plain c", "plain d", "plain e", "F"]
    assert ran(fake_kernel) == ["delegating", "delegating", "plain", "plain", "plain", "delegating"]


def test_a_tool_that_calls_another_makes_two_calls(fake_kernel: KernelHandle) -> None:
    inner = FunctionTool.from_defaults(add)

    def double(a: int) -> int:
        """Double."""
        return inner(a=a, b=a).raw_output

    with aios.running("nested"):
        assert FunctionTool.from_defaults(double)(a=4).raw_output == 8
    assert ran(fake_kernel) == ["double", "add"]


async def test_the_tools_own_error_reaches_the_caller(fake_kernel: KernelHandle) -> None:
    tool = FunctionTool.from_defaults(fail)
    with aios.running("failing"):
        with pytest.raises(ValueError, match="no luck"):
            tool(why="no luck")
        with pytest.raises(ValueError, match="again"):
            await tool.acall(why="again")
        output = call_tool(tool, {"why": "caught"})
    assert output.is_error
    assert output.content == "Encountered error: caught"
    ends = [span.outcome for span in fake_kernel.spans() if span.syscall == "tool.run"]
    assert len(ends) == 3
    assert "ok" not in ends


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_TOOL_TIMEOUT_S", "0.2")


async def test_a_hanging_tool_comes_back_as_an_error(hasty: None, fake_kernel: KernelHandle) -> None:
    over = threading.Event()

    def hang() -> str:
        """Hang."""
        over.wait(10)
        return "late"

    tool = FunctionTool.from_defaults(hang)
    try:
        with aios.running("hasty"):
            with pytest.raises(ToolTimeout, match="hang"):
                tool()
            with pytest.raises(ToolTimeout, match="hang"):
                await tool.acall()
            output = await acall_tool(tool, {})
    finally:
        over.set()  # the loop waits for its threads when it closes
    assert output.is_error
    assert isinstance(output.exception, ToolTimeout)


def test_arguments_are_told_by_name(fake_kernel: KernelHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    run_tool = aios.Scope.run_tool

    def spying(self: aios.Scope, name: str, arguments: str, *args: Any, **kwargs: Any) -> Any:
        told.append(json.loads(arguments))
        return run_tool(self, name, arguments, *args, **kwargs)

    monkeypatch.setattr(aios.Scope, "run_tool", spying)
    with aios.running("told"):
        FunctionTool.from_defaults(add)(1, b=2)
        Delegating()("text")
        Plain()("more")
        FunctionTool.from_defaults(lambda thing: str(thing), name="odd", description="x")(thing=object)
    assert told[:3] == [{"a": 1, "b": 2}, {"input": "text"}, {"input": "more"}]
    assert isinstance(told[3]["thing"], str)


async def test_outside_a_scope_nothing_is_counted(fake_kernel: KernelHandle) -> None:
    assert FunctionTool.from_defaults(add)(a=1, b=2).raw_output == 3
    assert (await Delegating().acall("x")).content == "X"
    assert fake_kernel.ps() == []


def test_a_tool_class_made_later_is_caught(fake_kernel: KernelHandle) -> None:
    class Late(Delegating):
        def call(self, input: str) -> ToolOutput:
            return super().call(input + "!")

    with aios.running("late"):
        assert Late()("x").content == "X!"
    assert ran(fake_kernel) == ["delegating"]
