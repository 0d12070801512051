"""Messages and shared memory between agents, through a real kernel."""

from __future__ import annotations

import asyncio
import threading

import pytest

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel import errors


def test_agents_exchange_messages_across_threads(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="asker")
    def ask() -> str:
        aios.send("answerer", "6 * 7", topic="question")
        return aios.receive(sender="answerer", timeout_s=10).body

    @aios.agent(name="answerer")
    def answer() -> None:
        question = aios.receive(topic="question", timeout_s=10)
        aios.send(question.sender, f"{question.body} = 42")

    thread = threading.Thread(target=answer)
    thread.start()
    assert ask() == "6 * 7 = 42"
    thread.join()


async def test_async_forms_and_waiting_for_a_program(fake_kernel: KernelHandle) -> None:
    programs: asyncio.Queue[str] = asyncio.Queue()

    @aios.agent(name="slow")
    async def slow() -> None:
        scope = aios.current()
        assert scope is not None
        await aios.asend("watcher", scope.program)
        await aios.areceive(topic="leave", timeout_s=10)

    @aios.agent(name="watcher")
    async def watch() -> tuple[str, str]:
        program = (await aios.areceive(timeout_s=10)).body
        await programs.put(program)
        await aios.asend("slow", "", topic="leave")
        row = await aios.await_end(program, timeout_s=10)
        return row.agent, row.state

    _, seen = await asyncio.gather(slow(), watch())
    assert seen == ("slow", "finished")


def test_a_message_waits_for_an_agent_that_does_not_run_yet(fake_kernel: KernelHandle) -> None:
    aios.agent(lambda: aios.send("later", "kept"), name="early")()
    assert aios.agent(lambda: aios.receive(timeout_s=5).body, name="later")() == "kept"


def test_receive_gives_up_in_time(fake_kernel: KernelHandle) -> None:
    with pytest.raises(errors.DeadlineExceeded, match='a message from bob on "news"'):
        aios.agent(lambda: aios.receive(sender="bob", topic="news", timeout_s=0.05), name="alice")()


def test_outside_of_an_agent_the_error_says_what_to_do() -> None:
    with pytest.raises(errors.InvalidRequest, match=r"@aios\.agent"):
        aios.send("bob", "hello")
    with pytest.raises(errors.InvalidRequest, match=r"memory\.search needs an agent"):
        aios.memory.search("anything")


def test_shared_notes_reach_the_group_and_nobody_else(fake_kernel: KernelHandle) -> None:
    def remember() -> str:
        aios.memory.add("the wifi password is swordfish", about="wifi")
        aios.memory.add("my own secret", shared=False)
        return aios.memory.search("secret", shared=False)[0].text

    def recall() -> list[str]:
        return [note.text for note in aios.memory.search("wifi password", k=3)]

    assert aios.agent(remember, name="alice", group="office")() == "my own secret"
    assert aios.agent(recall, name="bob", group="office")() == ["the wifi password is swordfish"]
    assert aios.agent(recall, name="eve", group="street")() == []


async def test_shared_notes_by_metadata_and_async(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice")
    async def alice() -> list[str]:
        await aios.memory.aadd("kiwi_7 costs 12.5", item="kiwi_7")
        await aios.memory.aadd("zebra-42 costs 14.5", item="zebra-42")
        return [note.text for note in await aios.memory.asearch("costs", filter={"item": "zebra-42"})]

    assert await alice() == ["zebra-42 costs 14.5"]


async def test_a_note_of_the_same_id_is_replaced(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice")
    async def alice() -> list[str]:
        aios.memory.add("the budget is 40", id="budget")
        await aios.memory.aadd("the budget is 50", id="budget")
        return [note.text for note in aios.memory.search("budget")]

    assert await alice() == ["the budget is 50"]
