"""How long a run lasts: what it returns lazily, and what a framework leaves running behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import aios_adapters as aios
from aios_adapters.patching import Patcher
from aios_adapters.testing import KernelHandle
from aios_kernel.errors import Cancelled
from aios_kernel.syscalls import LlmChat, LlmResult, Message


def _chat(text: str) -> LlmChat:
    return LlmChat(messages=[Message("user", text)])


async def test_a_held_run_ends_with_its_last_hold(fake_kernel: KernelHandle) -> None:
    held: list[Any] = []

    @aios.agent(name="starter")
    async def start() -> asyncio.Task[LlmResult]:
        scope = aios.current()
        assert scope is not None
        held.extend([scope.hold(), scope.hold()])
        await scope.achat(_chat("now"))
        return asyncio.create_task(scope.achat(_chat("later")))

    task = await start()
    assert (await task).text == "echo: later"
    held[0]()
    held[0]()  # a second release of the same hold changes nothing
    assert [row.state for row in fake_kernel.ps()] == ["idle"]
    held[1]()
    assert fake_kernel.wait_for(lambda: fake_kernel.ps()[0].state == "finished")


async def test_the_hold_of_a_child_keeps_its_parent(fake_kernel: KernelHandle) -> None:
    with aios.running("team") as team:
        assert team is not None
        child = team.child("worker", "test")
        release = child.hold()
        child.chat(_chat("x"))
    assert child.chat(_chat("still on")).text == "echo: still on"
    release()
    assert fake_kernel.wait_for(lambda: all(row.state == "finished" for row in fake_kernel.ps()))
    with pytest.raises(Cancelled):
        child.chat(_chat("over"))


async def test_an_error_ends_a_run_in_spite_of_its_holds(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="broken")
    async def broken() -> None:
        scope = aios.current()
        assert scope is not None
        scope.hold()
        await scope.achat(_chat("x"))
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        await broken()
    assert fake_kernel.wait_for(lambda: fake_kernel.ps()[0].state == "finished")
    assert fake_kernel.ps()[0].error == "ValueError: no luck"


async def test_a_stream_that_a_coroutine_returns_stays_in_its_run(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="streamer")
    async def stream() -> AsyncIterator[Any]:
        async def pieces() -> AsyncIterator[Any]:
            scope = aios.current()
            assert scope is not None
            async for piece in scope.astream(_chat("say one two")):
                yield piece

        return pieces()

    pieces = [piece async for piece in await stream()]
    assert isinstance(pieces[-1], LlmResult)
    assert aios.current() is None
    assert fake_kernel.wait_for(lambda: fake_kernel.ps()[0].state == "finished")


def test_the_first_adapter_names_the_framework_of_a_run(fake_kernel: KernelHandle) -> None:
    class Model:
        def ask(self) -> str:
            return "unscoped"

    patcher = Patcher("someframework")
    patcher.method(Model, "ask", lambda scope, original, self: scope.chat(_chat("hello")).text)

    @aios.agent(name="bare")
    def bare() -> str:
        return Model().ask()

    assert bare() == "echo: hello"
    patcher.undo()
    assert Model().ask() == "unscoped"
    assert [row.framework for row in fake_kernel.ps()] == ["someframework"]


def test_a_framework_that_comes_to_light_late_is_named_too(fake_kernel: KernelHandle) -> None:
    class Library:
        def work(self) -> None: ...

    def call(scope: aios.Scope, original: Any, self: Library) -> None:
        scope.chat(_chat("hello"))

    patcher = Patcher("latecomer")
    patcher.method(Library, "work", call)

    @aios.agent(name="agent")
    def run() -> None:
        aios.memory.add("a note before the framework's first call")
        Library().work()
        Library().work()

    run()
    (row,) = fake_kernel.ps()
    assert (row.framework, row.llm_calls, row.memory_calls) == ("latecomer", 2, 1)


def test_a_scope_knows_the_names_inside_it(fake_kernel: KernelHandle) -> None:
    with aios.running("team") as team, aios.running("expert") as expert:
        assert team is not None
        assert expert is not None
        assert not team.has_child("worker")
        assert team.child("worker", "test") is team.child("worker", "test")
        assert team.has_child("worker")
        assert not expert.has_child("worker")
        assert not team.has_child("expert")  # decorated agents say themselves who they are
