"""The contract of every adapter, as pytest tests: a new framework takes part with one fixture.

    from aios_adapters.contract import AdapterContract, Framework

    class TestContract(AdapterContract):
        @pytest.fixture
        def framework(self) -> Framework:
            return Framework(name="mine", chat=ask_my_framework, ...)

The functions of a `Framework` use the framework as its own users do and know nothing of the kernel. What a framework
does not have stays None, and the tests about it are skipped. The kernel is a real one with the fake engine (see
`aios_kernel.engine.fake` for what it answers); override the fixture `kernel` for one in another process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from aios_adapters import agent as decorated
from aios_adapters import running
from aios_adapters.testing import KernelHandle
from aios_kernel.errors import AiosError
from aios_kernel.syscalls import ProgramInfo

Chat = Callable[[str], Awaitable[str]]
Tool = Callable[..., Any]
_WAIT_S = 30.0
_TWO_CALLS = 'call add {"a": 1, "b": 2}\ncall add {"a": 3, "b": 4}'


@dataclass(frozen=True, slots=True)
class Framework:
    """How one framework is used.

    Attributes:
        name: the adapter's, as the process table shows it.
        chat: ask the model, and give its text.
        blocking: the same without asyncio.
        stream: ask the model, and yield its text as it comes.
        usage: ask the model, and give prompt and completion tokens as the framework counts them.
        structured: ask for an object with `city` (text) and `people` (integer), and give it as a dictionary.
        agent: run the framework's own agent of this name, with these tools, on a text; gives its last words.
        shown: the agent's name in the process table, `{}` standing for the one that it was given.
        errors: what a refusal of the kernel is raised as.
    """

    name: str
    chat: Chat
    blocking: Callable[[str], str] | None = None
    stream: Callable[[str], AsyncIterator[str]] | None = None
    usage: Callable[[str], Awaitable[tuple[int, int]]] | None = None
    structured: Callable[[str], Awaitable[dict[str, Any]]] | None = None
    agent: Callable[[str, str, Sequence[Tool]], Awaitable[str]] | None = None
    shown: str = "{}"
    errors: tuple[type[BaseException], ...] = (AiosError,)


def _needs(part: Any, what: str) -> Any:
    if part is None:
        pytest.skip(f"this framework has no {what}")
    return part


class AdapterContract:
    """The tests. Derive from it, and give it the fixture `framework`."""

    @pytest.fixture
    def kernel(self, fake_kernel: KernelHandle) -> KernelHandle:
        """The kernel that serves the tests."""
        return fake_kernel

    # --- the model --------------------------------------------------------------------------------------------------

    async def test_a_chat_is_served_by_the_kernel(self, kernel: KernelHandle, framework: Framework) -> None:
        """The answer is the kernel's, and the process table says through which adapter it was asked."""
        assert await decorated(framework.chat, name="contract")("say all right") == "all right"
        (row,) = _with_calls(kernel)
        assert (row.framework, row.llm_calls) == (framework.name, 1)

    async def test_a_blocking_chat(self, kernel: KernelHandle, framework: Framework) -> None:
        """Without asyncio, in the caller's thread."""
        blocking = _needs(framework.blocking, "blocking road")
        answer = await asyncio.to_thread(decorated(blocking, name="contract"), "say all right")
        assert answer == "all right"
        assert [row.llm_calls for row in _with_calls(kernel)] == [1]

    async def test_outside_of_an_agent_the_kernel_is_not_asked(
        self, kernel: KernelHandle, framework: Framework
    ) -> None:
        """There the framework goes its own way, here without a key and a network."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(2):
                assert await framework.chat("say all right") != "all right"
        assert _with_calls(kernel) == []

    async def test_a_stream_comes_piece_by_piece(self, kernel: KernelHandle, framework: Framework) -> None:
        """Several pieces, in order, nothing twice."""
        stream = _needs(framework.stream, "streams")

        @decorated(name="contract")
        async def pieces() -> list[str]:
            return [piece async for piece in stream("think 4") if piece]

        told = await pieces()
        assert "".join(told).split() == ["w0", "w1", "w2", "w3"]
        assert len(told) >= 4
        assert [row.llm_calls for row in _with_calls(kernel)] == [1]

    async def test_usage_is_the_kernels(self, kernel: KernelHandle, framework: Framework) -> None:
        """The framework counts the tokens that the kernel counted."""
        usage = _needs(framework.usage, "usage")
        prompt, completion = await decorated(usage, name="contract")("think 4")
        (row,) = _with_calls(kernel)
        assert (prompt, completion) == (row.prompt_tokens, row.completion_tokens)
        assert completion > 0

    async def test_structured_output(self, kernel: KernelHandle, framework: Framework) -> None:
        """The schema holds the answer, and comes back in the framework's own type."""
        structured = _needs(framework.structured, "structured output")
        assert await decorated(structured, name="contract")("which?") == {"city": "text", "people": 1}

    # --- ends -------------------------------------------------------------------------------------------------------

    async def test_cancelling_stops_the_generation(self, kernel: KernelHandle, framework: Framework) -> None:
        """A cancelled task leaves nothing behind on the model."""
        task = asyncio.ensure_future(decorated(framework.chat, name="contract")("ponder"))
        assert await asyncio.to_thread(kernel.wait_for, lambda: "running" in _states(kernel), _WAIT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(kernel.wait_for, lambda: _chats(kernel) == ["cancelled"], _WAIT_S)

    async def test_leaving_a_stream_stops_the_generation(self, kernel: KernelHandle, framework: Framework) -> None:
        """Whoever has seen enough closes the stream."""
        stream = _needs(framework.stream, "streams")

        @decorated(name="contract")
        async def leave() -> None:
            async with contextlib.aclosing(stream("ponder")) as pieces:
                async for piece in pieces:
                    if piece:
                        return

        await leave()
        assert await asyncio.to_thread(kernel.wait_for, lambda: _chats(kernel) == ["cancelled"], _WAIT_S)

    async def test_a_refusal_is_the_frameworks_error_with_our_text(
        self, kernel: KernelHandle, framework: Framework
    ) -> None:
        """What happened, and what mends it."""
        with pytest.raises(framework.errors) as caught:
            await decorated(framework.chat, name="contract", lora="french")("say x")
        assert 'LoRA adapter "french"' in str(caught.value)
        assert "fix:" in str(caught.value)

    async def test_a_deadline_ends_the_call(self, kernel: KernelHandle, framework: Framework) -> None:
        """Whatever the framework's retries make of it."""
        with pytest.raises(framework.errors) as caught:
            async with asyncio.timeout(_WAIT_S):
                await decorated(framework.chat, name="contract", deadline=0.4)("ponder")
        assert "deadline of 0.4 s" in str(caught.value)

    # --- tools ------------------------------------------------------------------------------------------------------

    async def test_all_tool_calls_of_a_turn_run_under_grants(self, kernel: KernelHandle, framework: Framework) -> None:
        """Two calls in one answer, each counted once."""
        answer = await self._with_tools(framework, _TWO_CALLS, _add)
        assert "3" in answer
        assert "7" in answer
        assert await asyncio.to_thread(kernel.wait_for, lambda: _tools(kernel) == [("add", "ok")] * 2, _WAIT_S)

    async def test_a_denied_tool_is_the_frameworks_tool_error(self, kernel: KernelHandle, framework: Framework) -> None:
        """The agent goes on, and its model is told."""
        ran: list[int] = []

        def add(a: int, b: int) -> int:
            """Add two numbers."""
            ran.append(a + b)
            return a + b

        answer = await self._with_tools(framework, 'call add {"a": 1, "b": 2}', add, tools=["other"])
        assert "may not use tool" in answer
        assert ran == []

    async def test_arguments_that_do_not_fit_the_schema(self, kernel: KernelHandle, framework: Framework) -> None:
        """The tool does not run, and the model is told."""
        ran: list[int] = []

        def add(a: int, b: int) -> int:
            """Add two numbers."""
            ran.append(a)
            return a + b

        answer = await self._with_tools(framework, 'call add {"a": "many", "b": 2}', add)
        assert ran == []
        assert answer

    async def test_a_tools_own_error_goes_where_it_went(self, kernel: KernelHandle, framework: Framework) -> None:
        """Or raised, where the framework does that; as without the kernel."""

        def add(a: int, b: int) -> int:
            """Add two numbers."""
            raise ValueError("no such number")

        try:
            told = await self._with_tools(framework, 'call add {"a": 1, "b": 2}', add)
        except ValueError as error:
            told = str(error)
        assert "no such number" in told
        assert await asyncio.to_thread(kernel.wait_for, lambda: _tools(kernel) == [("add", "tool")], _WAIT_S)

    async def _with_tools(self, framework: Framework, text: str, *functions: Tool, **options: Any) -> str:
        run = _needs(framework.agent, "agents with tools")
        with running("contract", **options):
            return str(await run("calc", text, functions))

    # --- identity ---------------------------------------------------------------------------------------------------

    async def test_each_agent_of_the_framework_has_its_name(self, kernel: KernelHandle, framework: Framework) -> None:
        """Side by side, as children of the decorated agent."""
        run = _needs(framework.agent, "agents of its own")
        names = ["ann", "bob", "cid"]

        @decorated(name="contract")
        async def work() -> list[str]:
            return await asyncio.gather(*(run(name, f"say I am {name}", ()) for name in names))

        assert await work() == [f"I am {name}" for name in names]
        rows = {row.agent: row for row in kernel.ps()}
        for name in names:
            row = rows[f"contract/{framework.shown.format(name)}"]
            assert (row.llm_calls, row.parent) == (1, rows["contract"].program)

    async def test_two_decorated_agents_at_once(self, kernel: KernelHandle, framework: Framework) -> None:
        """Neither takes the other's calls."""
        agents = {name: decorated(framework.chat, name=name) for name in ("left", "right")}
        await asyncio.gather(*(agent("say x") for agent in agents.values() for _ in range(3)))
        assert (
            sorted((row.agent, row.llm_calls) for row in _with_calls(kernel)) == [("left", 1)] * 3 + [("right", 1)] * 3
        )

    async def test_an_executors_threads_keep_the_name(self, kernel: KernelHandle, framework: Framework) -> None:
        """Also threads that were there before."""
        blocking = _needs(framework.blocking, "blocking road")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(str, range(2)))

            @decorated(name="contract")
            def work() -> list[str]:
                return list(pool.map(blocking, ["say a", "say b"]))

            assert await asyncio.to_thread(work) == ["a", "b"]
        assert [(row.agent, row.llm_calls) for row in _with_calls(kernel)] == [("contract", 2)]


def _add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


_add.__name__ = "add"


def _with_calls(kernel: KernelHandle) -> list[ProgramInfo]:
    return [row for row in kernel.ps() if row.llm_calls]


def _states(kernel: KernelHandle) -> list[str]:
    return [row.state for row in kernel.ps()]


def _chats(kernel: KernelHandle) -> list[str]:
    return [span.outcome for span in kernel.spans() if span.syscall == "llm.chat"]


def _tools(kernel: KernelHandle) -> list[tuple[str, str]]:
    return [(span.detail, span.outcome) for span in kernel.spans() if span.syscall == "tool.run"]
