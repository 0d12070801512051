"""Actions are tool calls of their roles."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel import errors
from aios_kernel.syscalls import AccessAudit, AuditRecord, AuditRecords


def records(kernel: KernelHandle, syscall: str) -> list[AuditRecord]:
    """What the audit log says of these syscalls, newest first."""
    answer = kernel.client.call(AccessAudit(limit=1_000))
    assert isinstance(answer, AuditRecords)
    return [record for record in answer.records if record.syscall == syscall]


async def test_each_action_is_a_tool_call_of_its_role(kernel: KernelHandle, carl: Any) -> None:
    message = await aios.agent(carl().run, name="desk")("say 391")
    assert message.content == "391"
    rows = {row.agent: row for row in kernel.ps()}
    assert rows["desk/Carl(Calculator)"].tool_calls == 1
    assert rows["desk"].tool_calls == 0
    (record,) = records(kernel, "tool.begin")
    assert (record.agent, record.resource) == ("desk/Carl(Calculator)", "Repeat")


async def test_an_action_that_calls_its_base_and_another_action(kernel: KernelHandle, metagpt: Any) -> None:
    class Say(metagpt.Action):
        async def run(self, text: str, times: int = 1) -> str:
            return await self._aask(f"say {text * times}")

    class Twice(Say):
        async def run(self, text: str) -> str:
            return f"{await super().run(text, 2)} and {await Say().run(text)}"

    @aios.agent(name="desk")
    async def work() -> str:
        return await Twice().run("ab")

    assert await work() == "abab and ab"
    (row,) = kernel.ps()
    assert (row.llm_calls, row.tool_calls) == (2, 2)  # Twice, and Say on its own


async def test_only_the_actions_that_are_allowed(kernel: KernelHandle, carl: Any) -> None:
    allowed = await aios.agent(carl().run, name="desk", tools=["Repeat"])("say 4")
    assert allowed.content == "4"
    with pytest.raises(errors.AccessDenied, match="Repeat"):
        await aios.agent(carl().run, name="shut", tools=["Search"])("say 4")
    assert {row.agent: row.llm_calls for row in kernel.ps()}["shut/Carl(Calculator)"] == 0


async def test_an_action_that_fails_or_is_cancelled_has_ended(kernel: KernelHandle, metagpt: Any) -> None:
    begun = asyncio.Event()

    class Fail(metagpt.Action):
        async def run(self) -> str:
            raise ZeroDivisionError("no luck")

    class Hang(metagpt.Action):
        async def run(self) -> str:
            begun.set()
            await asyncio.Event().wait()
            return "never"

    @aios.agent(name="desk")
    async def work(action: Any) -> str:
        return await action.run()

    with pytest.raises(ZeroDivisionError):
        await work(Fail())
    task = asyncio.create_task(work(Hang()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert kernel.wait_for(lambda: len(records(kernel, "tool.end")) == 2)


async def test_an_action_outside_of_agents_is_metagpts_own(metagpt: Any) -> None:
    class Plain(metagpt.Action):
        async def run(self, a: int) -> int:
            return a + 1

    assert await Plain().run(a=1) == 2
    with pytest.raises(NotImplementedError):
        await metagpt.Action().run()


async def test_wrong_arguments_are_the_actions_own_error(kernel: KernelHandle, carl: Any) -> None:
    @aios.agent(name="desk")
    async def work() -> Any:
        return await carl().actions[0].run("too", "many")

    with pytest.raises(TypeError, match="positional"):
        await work()
