"""Roles and teams under the decorator: model calls, identities, errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel import errors


async def test_a_role_runs_on_the_kernel(kernel: KernelHandle, carl: Any) -> None:
    message = await aios.agent(carl().run, name="desk")("say 391")
    assert (message.content, message.role) == ("391", "Calculator")
    rows = {row.agent: row for row in kernel.ps()}
    assert rows["desk/Carl(Calculator)"].framework == "metagpt"
    assert rows["desk/Carl(Calculator)"].llm_calls == 1
    assert rows["desk/Carl(Calculator)"].parent == rows["desk"].program


async def test_a_built_role_and_the_answer_streams(
    kernel: KernelHandle, carl: Any, metagpt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(metagpt.logs, "_llm_stream_log", shown.append)
    role = aios.agent(carl(), name="desk")
    assert isinstance(role, carl)
    assert (await role.run("think 4")).content == "w0 w1 w2 w3"
    assert [piece.strip() for piece in shown if piece.strip()] == ["w0", "w1", "w2", "w3"]


async def test_roles_side_by_side_keep_their_names(kernel: KernelHandle, carl: Any) -> None:
    @aios.agent(name="desk")
    async def ask() -> list[str]:
        roles = [carl(name=name) for name in ("Ann", "Bob", "Cid")]
        answers = await asyncio.gather(*(role.run(f"say I am {role.name}") for role in roles))
        return [answer.content for answer in answers]

    assert await ask() == ["I am Ann", "I am Bob", "I am Cid"]
    calls = {row.agent: row.llm_calls for row in kernel.ps()}
    assert calls == {"desk": 0} | {f"desk/{name}(Calculator)": 1 for name in ("Ann", "Bob", "Cid")}


async def test_a_team_hands_work_from_role_to_role(kernel: KernelHandle, metagpt: Any) -> None:
    class Ask(metagpt.Action):
        async def run(self, history: list[Any]) -> str:
            return await self._aask("say 17 * 23")

    class Answer(metagpt.Action):
        async def run(self, history: list[Any]) -> str:
            return await self._aask(f"say {history[-1].content} = 391")

    class Asker(metagpt.Role):
        name: str = "Ann"
        profile: str = "Asker"

        def __init__(self, **data: Any) -> None:
            super().__init__(**data)
            self.set_actions([Ask])
            self._watch([metagpt.UserRequirement])

    class Answerer(metagpt.Role):
        name: str = "Bob"
        profile: str = "Answerer"

        def __init__(self, **data: Any) -> None:
            super().__init__(**data)
            self.set_actions([Answer])
            self._watch([Ask])

    @aios.agent(name="office")
    async def work() -> str:
        team = metagpt.Team()
        team.hire([Asker(), Answerer()])
        team.invest(3.0)
        return await team.run(n_round=3, idea="multiply", auto_archive=False)

    history = await work()
    assert "Answerer: 17 * 23 = 391" in history
    calls = {row.agent: row.llm_calls for row in kernel.ps()}
    assert calls == {"office": 0, "office/Ann(Asker)": 1, "office/Bob(Answerer)": 1}


async def test_tokens_are_counted_and_no_money_is_spent(kernel: KernelHandle, carl: Any) -> None:
    role = carl()
    await aios.agent(role.run, name="desk")("say four words of answer")
    costs = role.llm.get_costs()
    assert costs.total_prompt_tokens > 0
    assert costs.total_completion_tokens >= 4
    assert costs.total_cost == 0


async def test_cancelling_a_role_stops_the_generation(kernel: KernelHandle, carl: Any) -> None:
    task = asyncio.create_task(aios.agent(carl().run, name="desk")("ponder"))
    running = lambda: any(row.state == "running" for row in kernel.ps())  # noqa: E731 - asked from a thread
    assert await asyncio.to_thread(kernel.wait_for, running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert kernel.wait_for(lambda: any(s.syscall == "llm.chat" and s.outcome == "cancelled" for s in kernel.spans()))


async def test_an_error_of_the_kernel_comes_out_of_the_role(kernel: KernelHandle, carl: Any) -> None:
    role = carl()
    role.llm.config.temperature = -1.0
    with pytest.raises(errors.InvalidRequest, match="temperature is -1"):
        await aios.agent(role.run, name="desk")("say never")


async def test_an_error_of_the_action_stays_what_metagpt_makes_of_it(kernel: KernelHandle, metagpt: Any) -> None:
    class Fail(metagpt.Action):
        async def run(self, history: list[Any]) -> str:
            raise ZeroDivisionError("no luck")

    role = metagpt.Role(name="Dan", profile="Daredevil", actions=[Fail()])
    with pytest.raises(Exception, match="ZeroDivisionError: no luck") as info:
        await aios.agent(role.run, name="desk")("go")
    assert type(info.value) is Exception


async def test_without_a_kernel_the_error_says_what_to_do(
    carl: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_KERNEL", str(tmp_path / "nowhere.sock"))
    with pytest.raises(errors.KernelUnavailable, match="fix: aios serve"):
        await aios.agent(carl().run, name="desk")("say never")


async def test_an_environment_that_cannot_run_a_kernel_says_so(
    carl: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_HOME", str(tmp_path))
    monkeypatch.delenv("AIOS_PYTHON", raising=False)
    with pytest.raises(errors.KernelUnavailable, match=r"fix: aios serve .* AIOS_PYTHON"):
        await aios.agent(carl().run, name="desk")("say never")


async def test_outside_of_a_scope_metagpt_goes_its_own_way(metagpt: Any, carl: Any) -> None:
    with pytest.raises(Exception, match="Please set your API key"):
        await carl().run("say never")
