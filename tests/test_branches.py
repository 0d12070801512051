"""Branches of an agent: they share its KV and its family, and losers are gone at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

import aios_adapters as aios
from aios_adapters import _kernel
from aios_adapters.testing import KernelHandle
from aios_kernel.client import Client, connect, stop_in_process
from aios_kernel.config import load
from aios_kernel.errors import Cancelled, InvalidRequest
from aios_kernel.syscalls import (
    KernelInfo,
    KernelStatus,
    LlmChat,
    LlmResult,
    Message,
    ProgramInfo,
    Sampling,
    ToolCall,
    ToolSpec,
)


async def ask(text: str, *before: Message) -> LlmResult:
    scope = aios.current()
    assert scope is not None
    sampling = Sampling(max_tokens=20) if text != "ponder" else Sampling()
    return await scope.achat(LlmChat(messages=[*before, Message("user", text)], sampling=sampling))


async def said(text: str) -> str:
    return (await ask(f"say {text}")).text


async def ponder() -> str:
    return (await ask("ponder")).text


def status(kernel: KernelHandle) -> KernelStatus:
    answer = kernel.client.call(KernelInfo())
    assert isinstance(answer, KernelStatus)
    return answer


def rows(kernel: KernelHandle) -> dict[str, ProgramInfo]:
    return {row.program: row for row in kernel.ps()}


async def test_each_branch_is_a_program_below_the_agent(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="searcher")
    async def search() -> tuple[list[str], list[str], str]:
        scope = aios.current()
        assert scope is not None
        async with aios.branches() as tree:
            tried = [tree.fork(said, word, name=f"try {word}") for word in ("one", "two")]
            answers = [await branch for branch in tried]
        return answers, [branch.program for branch in tried], scope.program

    answers, programs, root = await search()
    assert answers == ["one", "two"]
    table = rows(fake_kernel)
    assert [table[program].agent for program in programs] == ["searcher/try one", "searcher/try two"]
    assert {table[program].parent for program in programs} == {root}
    assert {table[program].state for program in programs} == {"finished"}


async def test_the_first_good_one_wins_and_the_losers_are_freed(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="searcher")
    async def search() -> None:
        async with aios.branches() as tree:
            losers = [tree.fork(ponder, name="loser") for _ in range(5)]
            assert await asyncio.to_thread(
                fake_kernel.wait_for, lambda: sum(row.state == "running" for row in fake_kernel.ps()) == 5
            )
            assert status(fake_kernel).kv_free_tokens < status(fake_kernel).kv_tokens
            bad, good = tree.fork(said, "bad"), tree.fork(said, "good")
            assert await tree.first(lambda answer: answer == "good") is good
            assert await bad == "bad"
            # The block is still open: the winner goes on, the losers hold nothing any more.
            assert await asyncio.to_thread(
                fake_kernel.wait_for, lambda: status(fake_kernel).kv_free_tokens == status(fake_kernel).kv_tokens
            )
            table = rows(fake_kernel)
            assert {table[loser.program].state for loser in losers} == {"finished"}
            assert all("given up" in (table[loser.program].error or "") for loser in losers)
            for loser in losers:
                with pytest.raises(Cancelled):
                    await loser

    await search()
    assert all(span.outcome == "cancelled" for span in fake_kernel.spans() if span.agent == "searcher/loser"
               and span.syscall == "llm.chat")  # fmt: skip


async def test_leaving_the_block_ends_what_has_not_ended(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="searcher")
    async def search() -> aios.Branch[str]:
        async with aios.branches() as tree:
            return tree.fork(ponder)

    left = await search()
    assert left.done
    with pytest.raises(Cancelled):
        left.result()
    assert fake_kernel.wait_for(lambda: status(fake_kernel).kv_free_tokens == status(fake_kernel).kv_tokens)


async def test_killing_a_branch_ends_the_branches_below_it(fake_kernel: KernelHandle) -> None:
    async def below() -> str:
        async with aios.branches() as tree:
            return await tree.fork(ponder, name="leaf")

    @aios.agent(name="searcher")
    async def search() -> None:
        async with aios.branches() as tree:
            branch = tree.fork(below, name="inner")
            assert await asyncio.to_thread(
                fake_kernel.wait_for, lambda: any(row.state == "running" for row in fake_kernel.ps())
            )
            branch.kill()
        assert await asyncio.to_thread(
            fake_kernel.wait_for,
            lambda: {row.agent: row.state for row in fake_kernel.ps()}["searcher/inner/leaf"] == "finished",
        )

    await search()


async def test_plain_functions_run_side_by_side(fake_kernel: KernelHandle) -> None:
    together = threading.Barrier(2, timeout=10)

    def work(word: str) -> str:
        scope = aios.current()
        assert scope is not None
        together.wait()
        return scope.chat(LlmChat(messages=[Message("user", f"say {word}")])).text

    @aios.agent(name="searcher")
    async def search() -> set[str]:
        async with aios.branches() as tree:
            tree.fork(work, "left")
            tree.fork(work, "right")
            return {branch.result() async for branch in tree}

    assert await search() == {"left", "right"}


async def test_failures(fake_kernel: KernelHandle) -> None:
    async def fail() -> str:
        raise LookupError("a dead end")

    @aios.agent(name="searcher")
    async def search() -> None:
        async with aios.branches() as tree:
            tree.fork(fail)
            tree.fork(said, "")
            assert await tree.first() is None
        async with aios.branches() as tree:
            broken = tree.fork(fail)
            with pytest.raises(LookupError):
                await tree.first()
            assert isinstance(broken.error, LookupError)
        async with aios.branches() as tree:
            assert await tree.first() is None

    await search()


async def test_outside_of_an_agent_it_says_so() -> None:
    with pytest.raises(InvalidRequest, match="branches needs an agent"):
        async with aios.branches():
            pass


async def test_a_method_of_the_agents_class_stays_in_its_branch(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="searcher")
    class Searcher:
        async def search(self) -> str:
            async with aios.branches() as tree:
                return await tree.fork(self.step)

        async def step(self) -> str:
            return await said("here")

    assert await Searcher().search() == "here"
    assert {row.agent for row in fake_kernel.ps()} == {"searcher", "searcher/branch"}


@pytest.fixture(params=["fifo", "program"])
def demo_kernel(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[KernelHandle, None, None]:
    settings = {"KERNEL": "inprocess", "HOME": str(tmp_path / "aios"), "MODEL": "demo", "POLICY": request.param}
    for name, value in {**settings, "KV_TOKENS": "8192", "EMBEDDER": "hash", "VECTORS": "exact"}.items():
        monkeypatch.setenv(f"AIOS_{name}", value)
    config = load()
    connection = connect(config, client="test-handle")
    yield KernelHandle(config, Client(connection))
    connection.close()
    _kernel.close_links()
    stop_in_process(config)


PATH = [
    Message("user", "What is 12 * 31? " + "The one that I asked for yesterday. " * 10),
    Message("assistant", "", [ToolCall("c1", "calculator", '{"expression": "12 * 31"}')]),
    Message("tool", "372", tool_call_id="c1"),
    Message("assistant", "It is 372."),
]


async def test_branches_take_the_agents_kv(demo_kernel: KernelHandle) -> None:
    tools = [ToolSpec("calculator", "", {"type": "object", "properties": {"expression": {"type": "string"}}})]

    async def go_on(question: str) -> LlmResult:
        scope = aios.current()
        assert scope is not None
        call = LlmChat(messages=[*PATH, Message("user", question)], tools=tools, sampling=Sampling(max_tokens=8))
        return await scope.achat(call)

    @aios.agent(name="searcher")
    async def search() -> tuple[LlmResult, list[LlmResult]]:
        own = await go_on("And now?")
        async with aios.branches() as tree:
            tried = [tree.fork(go_on, f"What is 372 + {number}?") for number in range(4)]
            return own, [await branch for branch in tried]

    own, tried = await search()
    assert own.usage.cached_tokens == 0
    for answer in tried:  # all but the last question, in full blocks
        assert answer.usage.cached_tokens >= own.usage.prompt_tokens - 64
    assert demo_kernel.wait_for(lambda: status(demo_kernel).kv_free_tokens == status(demo_kernel).kv_tokens)
