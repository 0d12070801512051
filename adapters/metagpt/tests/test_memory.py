"""Memories of roles: kept by the kernel, and still MetaGPT's."""

from __future__ import annotations

from typing import Any

import pytest

import aios_adapters as aios
from aios_adapters import _kernel
from aios_adapters.testing import KernelHandle


def contents(role: Any) -> list[str]:
    return [message.content for message in role.rc.memory.storage]


async def test_a_role_of_the_same_name_remembers(kernel: KernelHandle, carl: Any) -> None:
    @aios.agent(name="desk")
    async def ask(text: str) -> Any:
        role = carl()
        await role.run(text)
        return role

    first = await ask("say one")
    _kernel.close_links()
    second = await ask("say two")
    assert contents(second) == ["say one", "one", "say two", "two"]
    assert second.rc.memory.storage[:2] == first.rc.memory.storage
    assert len({id(m) for m in second.rc.memory.storage} & {id(m) for m in first.rc.memory.storage}) == 0


async def test_other_agents_and_other_names_remember_nothing_of_it(kernel: KernelHandle, carl: Any) -> None:
    async def ask(role: Any) -> list[str]:
        await role.run("say hello")
        return contents(role)

    assert await aios.agent(ask, name="desk")(carl()) == ["say hello", "hello"]
    assert await aios.agent(ask, name="counter")(carl()) == ["say hello", "hello"]
    assert await aios.agent(ask, name="desk")(carl(name="Dora")) == ["say hello", "hello"]


async def test_two_roles_of_one_name_in_one_run_stay_apart(kernel: KernelHandle, carl: Any) -> None:
    @aios.agent(name="desk")
    async def ask() -> list[list[str]]:
        one, two = carl(), carl()
        await one.run("say one")
        await two.run("say two")
        return [contents(one), contents(two)]

    assert await ask() == [["say one", "one"], ["say two", "two"]]
    assert await ask() == [["say one", "one", "say one", "one"], ["say two", "two", "say two", "two"]]


async def test_memories_before_the_first_run(kernel: KernelHandle, carl: Any) -> None:
    await aios.agent(carl().run, name="desk")("say one")
    assert [m.content for m in aios.agent(carl().get_memories, name="desk")(1)] == ["one"]


async def test_every_method_keeps_its_meaning(kernel: KernelHandle, carl: Any, metagpt: Any) -> None:
    @aios.agent(name="desk")
    async def check() -> None:
        role = carl()
        memory, message = role.rc.memory, metagpt.Message
        role.get_memories()
        a, b, c = message("apple", role="user"), message("bread", role="Carl"), metagpt.AIMessage("apple pie")
        b.cause_by = metagpt.UserRequirement
        memory.add_batch([a, b, c])
        memory.add(a)
        assert memory.count() == 3
        assert memory.get() == [a, b, c]
        assert memory.get(2) == [b, c]
        assert memory.get()[0] is a
        assert memory.get_by_role("Carl") == [b]
        assert memory.get_by_content("apple") == memory.try_remember("apple") == [a, c]
        assert memory.get_by_action(metagpt.UserRequirement) == [a, b, c]
        news = message("cherry")
        assert memory.find_news([a, news]) == [news]
        memory.delete(b)
        assert memory.delete_newest() is c
        assert memory.get() == memory.get_by_actions({metagpt.UserRequirement}) == [a]

    @aios.agent(name="desk")
    async def again() -> list[Any]:
        role = carl()
        kept = list(role.get_memories())
        role.rc.memory.clear()
        return kept

    await check()
    assert [m.content for m in await again()] == ["apple"]
    assert await again() == []


async def test_messages_come_back_as_they_were(kernel: KernelHandle, carl: Any, metagpt: Any) -> None:
    from metagpt.actions.action_node import ActionNode

    model = ActionNode.create_model_class("Answer", {"total": (str, ...), "units": (list[str], ...)})
    structured = metagpt.Message("42", instruct_content=model(total="42", units=["a", "b"]), send_to={"Ann", "Bob"})
    structured.sent_from = "Carl"

    async def keep() -> None:
        role = carl()
        role.get_memories()
        role.rc.memory.add_batch([structured, metagpt.AIMessage("plain")])

    await aios.agent(keep, name="desk")()
    one, two = aios.agent(carl().get_memories, name="desk")()
    assert one.model_dump() == structured.model_dump()
    assert one.instruct_content.model_dump() == {"total": "42", "units": ["a", "b"]}
    assert type(two) is metagpt.AIMessage
    assert (two.content, two.role) == ("plain", "assistant")


async def test_what_a_role_knew_before_its_first_scope_is_kept(kernel: KernelHandle, carl: Any, metagpt: Any) -> None:
    role = carl()
    role.rc.memory.add(metagpt.Message("known before"))
    await aios.agent(role.run, name="desk")("say one")
    assert contents(role) == ["known before", "say one", "one"]
    assert [m.content for m in aios.agent(carl().get_memories, name="desk")()] == ["known before", "say one", "one"]


@pytest.mark.parametrize(("mode", "counted"), [("off", False), ("mediated", True), (None, True)])
async def test_modes(kernel: KernelHandle, carl: Any, mode: Any, counted: bool) -> None:
    await aios.agent(carl().run, name="desk", memory=mode)("say one")
    second = carl()
    await aios.agent(second.run, name="desk", memory=mode)("say two")
    remembered = ["say one", "one"] if mode is None else []
    assert contents(second) == [*remembered, "say two", "two"]
    assert any(row.memory_calls for row in kernel.ps()) is counted


async def test_a_failed_run_can_be_repeated(kernel: KernelHandle, carl: Any) -> None:
    role = carl()
    role.llm.config.temperature = -1.0
    with pytest.raises(Exception, match="temperature"):
        await aios.agent(role.run, name="desk")("say one")
    assert aios.agent(carl().get_memories, name="desk")() == []
