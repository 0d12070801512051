"""Every option of the decorator: it exists, it does what it says, and what means nothing is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import aios_adapters as aios
from aios_adapters._options import AgentOptions, Options
from aios_adapters._tool_run import ToolRun
from aios_adapters.testing import KernelHandle
from aios_kernel import errors
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling, ToolGrant


def ask(text: str, **fields: Any) -> LlmResult:
    scope = aios.current()
    assert scope is not None
    return scope.chat(LlmChat(messages=[Message("user", text)], **fields))


def call_tool(name: str) -> str:
    scope = aios.current()
    assert scope is not None
    return scope.run_tool(name, "{}", lambda: "done")


def test_all_options_are_documented() -> None:
    documented = aios.agent.__doc__ or ""
    for name in Options.__annotations__:
        assert f"{name}: " in documented, name
    assert set(Options.__annotations__) - {"kernel"} == set(AgentOptions.__dataclass_fields__) - {"framework"}


def test_a_budget_ends_an_answer_and_then_the_asking(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice", budget=60)
    def work() -> list[LlmResult]:
        answers = [ask("ponder")]
        with pytest.raises(errors.BudgetExceeded, match="budget of 60 tokens") as caught:
            ask("ponder")
        assert caught.value.agent == "alice"
        assert "budget=" in (caught.value.fix or "")
        return answers

    (answer,) = work()
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 60
    work()  # another run has a budget of its own


def test_a_budget_counts_what_children_use(fake_kernel: KernelHandle) -> None:
    inner = aios.agent(lambda: ask("say in", sampling=Sampling(max_tokens=2)), name="inner", budget=1000)

    @aios.agent(name="outer", budget=40)
    def outer() -> int:
        for asked in range(20):
            try:
                inner()
            except errors.BudgetExceeded:
                return asked
        return 20

    assert 0 < outer() < 20


def test_a_deadline_ends_what_runs_and_what_follows(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice", deadline=0.3)
    def work() -> float:
        began = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded, match=r"run's deadline of 0\.3 s"):
            ask("ponder")
        took = time.monotonic() - began
        with pytest.raises(errors.DeadlineExceeded):
            ask("say x")
        return took

    assert work() < 5
    assert fake_kernel.wait_for(lambda: all(row.state == "finished" for row in fake_kernel.ps()))


async def test_a_deadline_holds_for_children_and_tools(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="inner", deadline=60)
    async def inner() -> None:
        scope = aios.current()
        assert scope is not None
        await scope.arun_tool("sleep", "{}", lambda: asyncio.sleep(30))

    @aios.agent(name="outer", deadline=0.3)
    async def outer() -> None:
        await inner()

    with pytest.raises(errors.ToolTimeout, match=r"did not end by the run's deadline of 0\.3 s"):
        await outer()


def test_only_the_tools_that_are_allowed(fake_kernel: KernelHandle) -> None:
    inner = aios.agent(call_tool, name="inner", tools=["read", "delete"])

    @aios.agent(name="outer", tools=["read", "write"])
    def outer() -> None:
        assert (call_tool("read"), call_tool("write"), inner("read")) == ("done",) * 3
        with pytest.raises(errors.AccessDenied, match="delete") as caught:
            inner("delete")  # a child cannot have more than its parent
        assert caught.value.agent == "outer/inner"
        with pytest.raises(errors.AccessDenied, match="write"):
            inner("write")

    outer()
    denied = aios.agent(call_tool, name="bob", tools=[])
    with pytest.raises(errors.AccessDenied):
        denied("read")


def test_the_kernels_own_tools_are_held_to_it_too(fake_kernel: KernelHandle) -> None:
    from aios_kernel.syscalls import ToolInvoke, ToolOutput

    @aios.agent(name="alice", tools=["read"])
    def work() -> None:
        scope = aios.current()
        assert scope is not None
        with pytest.raises(errors.AccessDenied, match="web_search"):
            scope.call(ToolInvoke("web_search"), ToolOutput)

    work()


def test_limits_of_tools_hold_across_agents(fake_kernel: KernelHandle) -> None:
    now, most, lock = 0, 0, threading.Lock()

    def run() -> str:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return "done"

    def use(tool: str) -> str:
        scope = aios.current()
        assert scope is not None
        return scope.run_tool(tool, "{}", run)

    limits = {name: aios.ToolLimit(exclusive="machine") for name in ("flash", "reset")}
    agents = [aios.agent(use, name=name, tool_limits=limits) for name in ("a", "b")]
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(agents[n % 2], ("flash", "reset")[n // 2 % 2]) for n in range(8)]
        assert [one.result(20) for one in calls] == ["done"] * 8
    assert most == 1
    with pytest.raises(errors.ConfigError, match="max_running"):
        aios.ToolLimit(max_running=0)


def test_a_tool_that_is_not_waited_for_any_more_gives_its_place_back(fake_kernel: KernelHandle) -> None:
    """An interrupt between the request and the grant must not hold the place until the tool's time is over."""
    given: list[ToolGrant] = []
    arrived = threading.Event()

    def give_back(grant: ToolGrant) -> None:
        given.append(grant)
        arrived.set()

    job = ToolRun(lambda: None, give_back)
    job.drop()
    job.answered(ToolGrant(grant="late", timeout_s=1.0))
    assert arrived.wait(10)
    assert [grant.grant for grant in given] == ["late"]
    assert job.grant is None


def test_models_are_mapped(fake_kernel: KernelHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    def models() -> list[str]:
        return [span.detail for span in fake_kernel.spans() if span.syscall == "llm.chat"]

    inner = aios.agent(lambda: ask("say x", model="gpt-4o-mini"), name="inner", models={"gpt-4o-mini": "small"})

    @aios.agent(name="outer", models={"gpt-4o": "large", "gpt-4o-mini": "medium"})
    def outer() -> None:
        ask("say x", model="gpt-4o")
        ask("say x", model="gpt-4o-mini")
        ask("say x", model="other")
        inner()

    outer()
    assert fake_kernel.wait_for(lambda: len(models()) == 4)
    assert models() == ["large", "medium", "other", "small"]


def test_a_lora_adapter_reaches_the_engine_which_refuses_it(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice", lora="french")
    def work() -> None:
        with pytest.raises(errors.Unsupported, match=r'LoRA adapter "french".*fake engine') as caught:
            ask("say x")
        assert "lora=" in (caught.value.fix or "")

    work()


def test_priority_group_and_memory_reach_the_kernel(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="alice", priority="interactive", group="team", memory="mediated")
    def work() -> None:
        scope = aios.current()
        assert scope is not None
        assert scope.options.memory == "mediated"
        ask("say x")

    work()
    (row,) = fake_kernel.ps()
    assert (row.agent, row.priority, row.group) == ("alice", "interactive", "team")


def test_options_of_a_with_block(fake_kernel: KernelHandle) -> None:
    with aios.running("alice", tools=["read"]), pytest.raises(errors.AccessDenied):
        call_tool("write")
    with aios.running("alice", kernel="off") as scope:
        assert scope is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("priority", "urgent"), ("memory", "disk"), ("window", "forget"), ("budget", 0), ("budget", 1.5),
        ("budget", True), ("deadline", -1), ("deadline", float("inf")), ("tools", "read"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused_where_it_is_written(option: str, value: object) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        aios.agent(**{option: value})  # type: ignore[arg-type]
    assert caught.value.fix
    with pytest.raises(errors.ConfigError):
        aios.agent(lambda: None, **{option: value})  # type: ignore[arg-type]


def test_an_unknown_option() -> None:
    with pytest.raises(TypeError, match="prio"):
        aios.agent(prio="batch")  # type: ignore[call-arg]
