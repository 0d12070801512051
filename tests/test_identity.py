"""Whose call it is: in threads, executors, callbacks, tasks, generators, forks and child processes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import aios_adapters as aios
from aios_adapters import _handover
from aios_adapters.plugins import host
from aios_adapters.testing import KernelHandle
from aios_kernel import errors
from aios_kernel.syscalls import LlmChat, Message, ProgramInfo

WORKER = Path(__file__).with_name("handover_worker.py")
INLINE = "import sys; sys.path.insert(0, sys.argv[2]); import handover_worker as w; print(*w.both(sys.argv[1]))"


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The worker's module under a name that child processes can import."""
    monkeypatch.syspath_prepend(str(WORKER.parent))
    monkeypatch.setenv("PYTHONPATH", str(WORKER.parent))
    spec = importlib.util.find_spec("handover_worker")
    assert spec is not None
    module = importlib.import_module("handover_worker")
    yield module
    sys.modules.pop("handover_worker", None)


def who() -> str | None:
    scope = aios.current()
    return scope.agent if scope is not None else None


def ask(text: str) -> str:
    scope = aios.current()
    assert scope is not None
    return scope.chat(LlmChat(messages=[Message("user", text)])).text


def rows(kernel: KernelHandle, count: int) -> dict[str, ProgramInfo]:
    assert kernel.wait_for(lambda: len(kernel.ps()) == count and all(row.finished_s for row in kernel.ps())), (
        kernel.ps()
    )
    return {row.agent: row for row in kernel.ps()}


def test_a_raw_thread(fake_kernel: KernelHandle) -> None:
    answers: list[str] = []

    @aios.agent(name="alice")
    def work() -> None:
        thread = threading.Thread(target=lambda: answers.append(ask("say x")))
        thread.start()
        thread.join()

    work()
    assert answers == ["x"]
    assert rows(fake_kernel, 1)["alice"].llm_calls == 1


def test_a_subclass_of_thread_and_a_timer(fake_kernel: KernelHandle) -> None:
    seen: list[str | None] = []

    class Mine(threading.Thread):
        def run(self) -> None:
            seen.append(who())

    @aios.agent(name="alice")
    def work() -> None:
        threads = [Mine(), threading.Timer(0.01, lambda: seen.append(who()))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    work()
    assert seen == ["alice", "alice"]
    outside = Mine()
    outside.start()
    outside.join()
    assert seen[-1] is None


def test_a_pools_threads_belong_to_nobody(fake_kernel: KernelHandle) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        agents = [aios.agent(lambda: pool.submit(who).result(), name=name) for name in ("alice", "bob")]
        assert [agent() for agent in agents] == ["alice", "bob"]
        assert pool.submit(who).result() is None
        assert aios.agent(lambda: list(pool.map(lambda _: who(), range(2))), name="carol")() == ["carol"] * 2


async def test_run_in_executor_and_to_thread(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice")
    async def work() -> list[str | None]:
        loop = asyncio.get_running_loop()
        return [await loop.run_in_executor(None, who), await asyncio.to_thread(who)]

    assert await work() == ["alice", "alice"]


def test_callbacks_of_futures(fake_kernel: KernelHandle) -> None:
    seen: list[str | None] = []
    called = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        @aios.agent(name="alice")
        def work(future: concurrent.futures.Future[None]) -> None:
            future.add_done_callback(lambda _: (seen.append(who()), called.set()))

        gate = threading.Event()
        future = pool.submit(gate.wait)  # by nobody
        work(future)  # type: ignore[arg-type]
        gate.set()
        assert called.wait(5)
    assert seen == ["alice"]


async def test_tasks_and_callbacks_of_the_loop(fake_kernel: KernelHandle) -> None:
    seen: list[str | None] = []

    async def background() -> None:
        await asyncio.sleep(0.01)
        seen.append(who())

    @aios.agent(name="alice")
    async def work() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: seen.append(who()))
        loop.call_later(0.01, lambda: seen.append(who()))
        task = asyncio.create_task(background())
        task.add_done_callback(lambda _: seen.append(who()))
        async with asyncio.TaskGroup() as group:
            group.create_task(background())
        await task
        await asyncio.sleep(0.01)

    await work()
    assert seen == ["alice"] * 5


async def test_a_task_that_is_returned_keeps_its_run_and_one_left_behind_is_told(fake_kernel: KernelHandle) -> None:
    go = asyncio.Event()
    left: list[asyncio.Task[None]] = []

    async def late() -> None:
        await go.wait()
        scope = aios.current()
        assert scope is not None
        await scope.achat(LlmChat(messages=[Message("user", "say x")]))

    @aios.agent(name="alice")
    async def work() -> asyncio.Task[None]:
        return asyncio.create_task(late())

    @aios.agent(name="bob")
    async def leave() -> None:
        left.append(asyncio.create_task(late()))

    task = await work()
    await leave()
    go.set()
    await task
    with pytest.raises(errors.Cancelled, match="run has ended"):
        await left[0]
    assert rows(fake_kernel, 1)["alice"].llm_calls == 1


async def test_gather_of_agents_inside_an_agent(fake_kernel: KernelHandle) -> None:
    async def body() -> str | None:
        await asyncio.sleep(0)
        scope = aios.current()
        assert scope is not None
        await scope.achat(LlmChat(messages=[Message("user", "say x")]))
        return scope.agent

    @aios.agent(name="boss")
    async def boss() -> list[str | None]:
        return await asyncio.gather(*(aios.agent(body, name=f"w{n}")() for n in range(4)), body())

    assert await boss() == ["boss/w0", "boss/w1", "boss/w2", "boss/w3", "boss"]
    table = rows(fake_kernel, 5)
    assert {table[f"boss/w{n}"].parent for n in range(4)} == {table["boss"].program}


def test_a_sync_generator_on_a_wrapped_object_in_a_thread(fake_kernel: KernelHandle) -> None:
    class Graph:
        def stream(self) -> Iterator[str | None]:
            yield who()
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                yield pool.submit(who).result()

    graph = aios.agent(Graph(), name="graph")
    seen: list[str | None] = []

    def consume() -> None:
        for item in graph.stream():
            seen.extend((item, who()))

    thread = threading.Thread(target=consume)
    thread.start()
    thread.join()
    assert seen == ["graph", None, "graph", None]


def test_callables_and_nested_objects(fake_kernel: KernelHandle) -> None:
    class Inner:
        def __call__(self) -> str:
            return ask("say in")

    class Outer:
        def __init__(self) -> None:
            self.inner = aios.agent(Inner(), name="inner")

        def run(self) -> str:
            return self.inner() + ask("say out")

    assert aios.agent(Outer(), name="outer").run() == "inout"
    table = rows(fake_kernel, 2)
    assert table["outer/inner"].parent == table["outer"].program


def test_an_agent_with_another_kernel_is_nobodys_child(fake_kernel: KernelHandle, tmp_path: Path) -> None:
    inner = aios.agent(lambda: ask("say x"), name="inner", kernel=f"{tmp_path}/none.sock")

    @aios.agent(name="outer")
    def outer() -> None:
        with pytest.raises(errors.KernelUnavailable):
            inner()

    outer()


# --- processes ------------------------------------------------------------------------------------------------------


def check_family(kernel: KernelHandle, calls: int) -> None:
    """The parent's program made its own call and the child's; the child's agent is its child."""
    table = rows(kernel, 2)
    assert table["alice"].llm_calls == calls
    assert (table["alice/helper"].parent, table["alice/helper"].llm_calls) == (table["alice"].program, 1)


def test_a_plain_subprocess(fake_kernel: KernelHandle, worker: Any) -> None:
    @aios.agent(name="alice", models={"gpt-4o": "mapped"}, memory="mediated")
    def work() -> str:
        done = subprocess.run([sys.executable, str(WORKER), "hi"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert work() == "hi hi alice"
    check_family(fake_kernel, 1)
    assert {span.detail for span in fake_kernel.spans() if span.syscall == "llm.chat"} == {"mapped"}


async def test_a_subprocess_of_asyncio_with_an_environment(fake_kernel: KernelHandle, worker: Any) -> None:
    @aios.agent(name="alice")
    async def work() -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", INLINE, "hi", str(WORKER.parent),
            env={**os.environ, "EXTRA": "1"}, stdout=subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        return out.decode().strip()

    assert await work() == "hi hi alice"
    check_family(fake_kernel, 1)


def test_a_subprocess_for_which_the_kernel_is_off(fake_kernel: KernelHandle) -> None:
    code = "import aios_adapters as a; print(a.current())"

    @aios.agent(name="alice")
    def work() -> str:
        env = {**os.environ, "AIOS_KERNEL": "off"}
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout

    assert work().strip() == "None"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_process_of_multiprocessing(fake_kernel: KernelHandle, worker: Any, method: str) -> None:
    @aios.agent(name="alice")
    def work() -> None:
        process = multiprocessing.get_context(method).Process(target=worker.both, args=("hi",))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        assert not hasattr(process, "_aios_run")

    work()
    check_family(fake_kernel, 1)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_is_a_program_of_its_own(fake_kernel: KernelHandle, worker: Any) -> None:
    @aios.agent(name="alice")
    def work() -> None:
        ask("say before")
        process = multiprocessing.get_context("fork").Process(target=ask, args=("say x",))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        ask("say after")

    work()
    assert fake_kernel.wait_for(lambda: len(fake_kernel.ps()) == 2)
    first, second = fake_kernel.ps()
    assert (first.agent, first.llm_calls, second.agent, second.llm_calls) == ("alice", 2, "alice", 1)
    assert second.parent == first.program


def test_a_pool_of_processes_serves_one_run_after_the_other(fake_kernel: KernelHandle, worker: Any) -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        for name in ("alice", "bob"):
            agent = aios.agent(lambda: pool.submit(worker.both, "hi").result(60), name=name)
            assert agent() == ("hi", "hi", name)
        with pytest.raises(AssertionError, match="no agent is on"):
            pool.submit(worker.both, "hi").result(60)
    table = rows(fake_kernel, 4)
    assert {table[f"{name}/helper"].parent for name in ("alice", "bob")} == {
        table[name].program for name in ("alice", "bob")
    }


def test_a_child_that_outlives_its_run_is_told(fake_kernel: KernelHandle, worker: Any) -> None:
    @aios.agent(name="alice")
    def work() -> dict[str, str]:
        scope = aios.current()
        assert scope is not None
        return _handover.environment(scope.registered())

    variables = work()
    rows(fake_kernel, 1)
    done = subprocess.run(
        [sys.executable, str(WORKER), "hi"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "NotFound" in done.stderr


def test_an_environment_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_PARENT", "nonsense")
    with pytest.raises(errors.ConfigError, match="PROGRAM:AGENT"):
        _handover.inherit()
    monkeypatch.setenv("AIOS_PARENT", "p:alice")
    monkeypatch.setenv("AIOS_PARENT_OPTIONS", "{")
    with pytest.raises(errors.ConfigError, match="no JSON"):
        _handover.inherit()


@pytest.fixture
def undone() -> Generator[None]:
    host().deactivate()
    yield
    host().activate()


def test_pythons_own_ways_are_put_back(undone: None) -> None:
    for function in (threading.Thread.start, concurrent.futures.ThreadPoolExecutor.submit, subprocess.Popen.__init__):
        assert not hasattr(function, "__wrapped__")
