"""The decorator on every kind of target: one scope a run, identities kept, the wrapped thing unchanged otherwise."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import AsyncGenerator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel import errors
from aios_kernel.syscalls import LlmChat, Message, ProgramInfo, ToolSpec


def ask(text: str) -> str:
    scope = aios.current()
    assert scope is not None
    return scope.chat(LlmChat(messages=[Message("user", text)])).text


async def aask(text: str) -> str:
    scope = aios.current()
    assert scope is not None
    return (await scope.achat(LlmChat(messages=[Message("user", text)]))).text


def finished(kernel: KernelHandle, count: int = 1) -> list[ProgramInfo]:
    def done() -> bool:
        return len(kernel.ps()) == count and all(row.state == "finished" for row in kernel.ps())

    assert kernel.wait_for(done), kernel.ps()
    return kernel.ps()


def test_a_function(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice", priority="batch", group="team")
    def work(topic: str, *, times: int = 1) -> str:
        """Works."""
        return ask(f"say {topic}") * times

    assert work("x", times=2) == "xx"
    assert aios.current() is None
    (row,) = finished(fake_kernel)
    assert (row.agent, row.priority, row.group, row.llm_calls, row.error) == ("alice", "batch", "team", 1, None)
    assert work.__doc__ == "Works."
    assert list(inspect.signature(work).parameters) == ["topic", "times"]


def test_the_name_defaults_to_the_functions(fake_kernel: KernelHandle) -> None:
    @aios.agent
    def researcher() -> str:
        return ask("say x")

    researcher()
    assert finished(fake_kernel)[0].agent == "researcher"


async def test_a_coroutine_function(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice")
    async def work() -> str:
        return await aask("say x")

    assert inspect.iscoroutinefunction(work)
    assert await work() == "x"
    assert finished(fake_kernel)[0].agent == "alice"


def test_a_generator_is_in_scope_only_while_it_steps(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice")
    def work() -> Generator[str, str, str]:
        got = yield ask("say one")
        yield ask(f"say {got}")
        return "end"

    steps = work()
    assert next(steps) == "one"
    assert aios.current() is None
    assert steps.send("two") == "two"
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value == "end"
    assert finished(fake_kernel)[0].llm_calls == 2


def test_leaving_a_generator_ends_the_program(fake_kernel: KernelHandle) -> None:
    closed: list[bool] = []

    @aios.agent(name="alice")
    def work() -> Iterator[str]:
        try:
            while True:
                yield ask("say x")
        finally:
            closed.append(aios.current() is not None)

    steps = work()
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert closed == [True]
    finished(fake_kernel)


def test_what_is_thrown_into_a_generator_reaches_it(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice")
    def work() -> Generator[str, None, None]:
        try:
            yield ask("say x")
        except KeyError:
            yield "caught"

    steps = work()
    next(steps)
    assert steps.throw(KeyError("k")) == "caught"
    steps.close()


async def test_an_async_generator(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice")
    async def work() -> AsyncGenerator[str, None]:
        for n in range(3):
            yield await aask(f"say {n}")

    seen: list[str] = []
    async for item in work():
        assert aios.current() is None
        seen.append(item)
    assert seen == ["0", "1", "2"]
    assert finished(fake_kernel)[0].llm_calls == 3


async def test_an_async_generator_closed_in_another_task(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice")
    async def work() -> AsyncGenerator[str, None]:
        while True:
            yield await aask("say x")

    steps = work()
    assert await anext(steps) == "x"
    await asyncio.create_task(steps.aclose())  # type: ignore[arg-type]
    finished(fake_kernel)


def test_a_class_keeps_its_identity(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice")
    class Worker:
        def __init__(self, word: str) -> None:
            self.word = word

        def outer(self) -> str:
            return self.inner() + self.inner()

        def inner(self) -> str:
            return ask(f"say {self.word}")

        async def later(self) -> str:
            return await aask(f"say {self.word}")

    assert Worker("x").outer() == "xx"
    assert asyncio.run(Worker("y").later()) == "y"
    assert [row.llm_calls for row in finished(fake_kernel, 2)] == [2, 1]


def test_a_built_object(fake_kernel: KernelHandle) -> None:
    class Team:
        name = "builders"

        def run(self, word: str) -> str:
            return ask(f"say {word}")

        def stream(self) -> Iterator[str]:
            yield ask("say a")
            yield ask("say b")

    original = Team()
    team = aios.agent(original)
    assert isinstance(team, Team)
    assert team.run("x") == "x"
    assert list(team.stream()) == ["a", "b"]
    assert [(row.agent, row.llm_calls) for row in finished(fake_kernel, 2)] == [("builders", 1), ("builders", 2)]
    with pytest.raises(AssertionError):
        original.run("x")


async def test_two_agents_under_gather_keep_their_identities(fake_kernel: KernelHandle) -> None:
    async def body(name: str) -> str:
        for _ in range(5):
            await aask(f"say {name}")
            await asyncio.sleep(0)
        scope = aios.current()
        assert scope is not None
        return scope.agent

    agents = [aios.agent(body, name=f"agent{n}") for n in range(8)]
    names = await asyncio.gather(*(agent(f"n{i}") for i, agent in enumerate(agents)))
    assert names == [f"agent{n}" for n in range(8)]
    assert sorted((row.agent, row.llm_calls) for row in finished(fake_kernel, 8)) == [
        (f"agent{n}", 5) for n in range(8)
    ]


def test_threads_keep_their_identities(fake_kernel: KernelHandle) -> None:
    def body() -> str:
        ask("say x")
        scope = aios.current()
        assert scope is not None
        return scope.agent

    agents = [aios.agent(body, name=f"agent{n}") for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda agent: agent(), agents)) == [f"agent{n}" for n in range(6)]
    finished(fake_kernel, 6)


def test_an_agent_inside_an_agent_is_its_child(fake_kernel: KernelHandle) -> None:
    inner = aios.agent(lambda: ask("say in"), name="inner")

    @aios.agent(name="outer")
    def outer() -> str:
        return ask("say out") + inner()

    assert outer() == "outin"
    rows = {row.agent: row for row in finished(fake_kernel, 2)}
    assert rows["outer/inner"].parent == rows["outer"].program


def test_an_error_is_kept_in_the_process_table(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice")
    def work() -> None:
        ask("say x")
        raise RuntimeError("broken plan")

    with pytest.raises(RuntimeError, match="broken plan"):
        work()
    assert finished(fake_kernel)[0].error == "RuntimeError: broken plan"


def test_off_means_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_KERNEL", "off")

    @aios.agent(name="alice")
    def work() -> object:
        return aios.current()

    assert work() is None


def test_tools_run_under_a_grant(fake_kernel: KernelHandle) -> None:
    marker: contextvars.ContextVar[int] = contextvars.ContextVar("marker", default=0)

    @aios.agent(name="alice")
    def work() -> int:
        scope = aios.current()
        assert scope is not None
        answer = scope.chat(LlmChat(messages=[Message("user", "call add {}")], tools=[ToolSpec("add")]))
        marker.set(7)
        return scope.run_tool(answer.tool_calls[0].name, "{}", lambda: marker.get() + 1)

    assert work() == 8
    (row,) = finished(fake_kernel)
    assert row.tool_calls == 1
    assert any(span.syscall == "tool.run" and span.detail == "add" for span in fake_kernel.spans())


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that gives tools a third of a second instead of minutes; to be asked for before `fake_kernel`."""
    monkeypatch.setenv("AIOS_TOOL_TIMEOUT_S", "0.3")


def test_a_tool_that_raises_and_a_tool_that_hangs(short_limit: None, fake_kernel: KernelHandle) -> None:
    hang = threading.Event()

    def broken() -> None:
        raise ValueError("no such row")

    @aios.agent(name="alice")
    def work() -> None:
        scope = aios.current()
        assert scope is not None
        with pytest.raises(ValueError, match="no such row"):
            scope.run_tool("broken", "{}", broken)
        with pytest.raises(errors.ToolTimeout) as caught:
            scope.run_tool("hanging", "{}", hang.wait)
        assert caught.value.agent == "alice"

    work()
    hang.set()
    assert fake_kernel.wait_for(
        lambda: [s.outcome for s in fake_kernel.spans() if s.syscall == "tool.run"] == ["tool"] * 2
    )


def test_no_kernel_to_join_is_a_clear_error(tmp_path: object) -> None:
    @aios.agent(name="alice", kernel=f"{tmp_path}/none.sock")
    def work() -> str:
        return ask("say x")

    with pytest.raises(errors.KernelUnavailable) as caught:
        work()
    assert "aios serve" in str(caught.value)


def test_exported_names() -> None:
    for name in aios.__all__:
        assert getattr(aios, name) is not None
    assert list(aios.__all__) == sorted(aios.__all__)


def test_a_kernel_by_its_url(fake_kernel: KernelHandle) -> None:
    """`unix://` names the same socket as the path; the decorator and the environment take both."""
    path = f"unix://{fake_kernel.config.home}/run/kernel.sock"

    @aios.agent(name="alice", kernel=path)
    def work() -> str:
        return ask("say x")

    assert work() == "x"
    assert finished(fake_kernel)[0].agent == "alice"
