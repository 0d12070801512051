"""Effects: a call has its effect once, whatever is repeated, and a kernel that died left word of what it had begun."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from aios_kernel.errors import EffectUnknown, InvalidRequest, ToolError, ToolNotStarted, ToolTimeout
from aios_kernel.syscalls import ToolInvoke, ToolSpec
from aios_kernel.tools import (
    Caller,
    EffectStatus,
    HostedTool,
    Retry,
    Slots,
    TimeLimit,
    ToolRegistry,
    ToolStore,
)
from aios_kernel.tools.registry import _work

ONCE = Retry()
ME = Caller("me", "bot", "p1")
Open = Callable[..., ToolRegistry]


class Outside:
    """A service with effects, which knows the keys of those that it has had."""

    def __init__(self) -> None:
        self.effects: list[str] = []
        self.keys: dict[str, str] = {}
        self.fail_before = self.fail_after = 0
        self.gate: threading.Event | None = None
        self.waits = threading.Event()
        self.knows = True

    def once(self, what: str = "x") -> str:
        return self._effect(what)

    def keyed(self, idempotency_key: str, what: str = "x") -> str:
        if idempotency_key not in self.keys:
            self.keys[idempotency_key] = self._effect(what)
        elif self.fail_after:
            self._effect_failed()
        return self.keys[idempotency_key]

    def remembered(self, idempotency_key: str, what: str = "x") -> str:
        if self.fail_before:
            self.fail_before -= 1
            raise ConnectionError("refused")
        self.effects.append(what)
        self.keys[idempotency_key] = f"done {what}"
        if self.fail_after:
            self._effect_failed()
        return f"done {what}"

    def status(self, idempotency_key: str) -> EffectStatus:
        if not self.knows:
            return EffectStatus("unknown")
        found = self.keys.get(idempotency_key)
        return EffectStatus("not_done") if found is None else EffectStatus("done", found)

    def _effect(self, what: str) -> str:
        if self.fail_before:
            self.fail_before -= 1
            raise ConnectionError("refused")
        self.effects.append(what)
        if self.gate is not None:
            self.waits.set()
            assert self.gate.wait(30)
        if self.fail_after:
            self._effect_failed()
        return f"done {what}"

    def _effect_failed(self) -> None:
        self.fail_after -= 1
        raise ConnectionError("the answer was lost")


@pytest.fixture
def outside() -> Outside:
    return Outside()


@pytest.fixture
async def opened(tmp_path: Path, outside: Outside) -> AsyncGenerator[Open, None]:
    """Registries on one data directory, one after the other as kernels are."""
    registries: list[ToolRegistry] = []

    def open_one(retry: Retry = ONCE, slots: Slots | None = None) -> ToolRegistry:
        tools = [
            HostedTool(ToolSpec(name="once"), outside.once, retry=retry),
            HostedTool(ToolSpec(name="keyed"), outside.keyed, effects="keyed", retry=retry),
            HostedTool(
                ToolSpec(name="queryable"), outside.remembered, effects="queryable", status=outside.status, retry=retry
            ),
            HostedTool(ToolSpec(name="free"), outside.once, effects="idempotent"),
        ]
        registry = ToolRegistry(tools, store=ToolStore(tmp_path / "tools.db"), slots=slots)
        registries.append(registry)
        return registry

    yield open_one
    for registry in registries:
        await registry.close()


async def call(registry: ToolRegistry, name: str, key: str = "", caller: Caller = ME, **more: Any) -> str:
    return (await registry.call(ToolInvoke(name=name, key=key, **more), caller)).content


RULES = ["once", "keyed", "queryable"]


@pytest.mark.parametrize("name", RULES)
async def test_a_second_call_with_the_key_gives_the_recorded_result(opened: Open, outside: Outside, name: str) -> None:
    registry = opened()
    assert await call(registry, name, "k") == "done x"
    assert await call(registry, name, "k") == "done x"
    assert await asyncio.gather(*(call(registry, name, "k2") for _ in range(8))) == ["done x"] * 8
    assert outside.effects == ["x", "x"]
    assert await call(registry, name) == await call(registry, name), "without a key, each is a call of its own"
    assert len(outside.effects) == 4
    await registry.close()
    assert await call(opened(), name, "k") == "done x", "another kernel knows it too"
    assert len(outside.effects) == 4


async def test_a_key_is_its_owners_and_names_one_call(opened: Open, outside: Outside) -> None:
    registry = opened()
    await call(registry, "once", "k")
    for other in (Caller("me", "other"), Caller("you", "bot")):
        await call(registry, "once", "k", other)
    assert len(outside.effects) == 3
    with pytest.raises(InvalidRequest, match="is that of another call"):
        await call(registry, "once", "k", arguments='{"what": "y"}')
    with pytest.raises(InvalidRequest, match="is that of another call"):
        await call(registry, "keyed", "k")
    outside.gate = threading.Event()
    running = asyncio.ensure_future(call(registry, "once", "k3"))
    await asyncio.to_thread(outside.waits.wait, 10)
    with pytest.raises(InvalidRequest, match="is that of another call"):
        await call(registry, "once", "k3", arguments='{"what": "y"}')
    outside.gate.set()
    assert await running == "done x"


async def test_tools_that_are_idempotent_are_simply_run(opened: Open, outside: Outside) -> None:
    registry = opened()
    assert [await call(registry, "free", "k") for _ in range(3)] == ["done x"] * 3
    assert len(outside.effects) == 3


async def test_what_failed_once_is_not_run_again(opened: Open, outside: Outside) -> None:
    registry = opened(Retry(attempts=5, wait_s=0.01))
    outside.fail_after = 1
    for _ in range(2):
        with pytest.raises(ToolError, match="the answer was lost"):
            await call(registry, "once", "k")
    assert outside.effects == ["x"]


async def test_keyed_tools_are_tried_again_with_their_key(opened: Open, outside: Outside) -> None:
    registry = opened(Retry(attempts=3, wait_s=0.01))
    outside.fail_before = 2
    assert await call(registry, "keyed", "k") == "done x"
    assert outside.effects == ["x"]
    assert len(outside.keys) == 1
    outside.fail_before = 9
    with pytest.raises(ToolError, match="refused"):
        await call(registry, "keyed", "k2")
    outside.fail_before = 0
    assert await call(registry, "keyed", "k2") == "done x", "a failure is not the last word: the key protects"


async def test_queryable_tools_are_asked_before_they_are_tried_again(opened: Open, outside: Outside) -> None:
    registry = opened(Retry(attempts=3, wait_s=0.01))
    outside.fail_before = 1
    assert await call(registry, "queryable", "k") == "done x"
    outside.fail_after = 1
    assert await call(registry, "queryable", "k2") == "done x"
    assert outside.effects == ["x", "x"]
    outside.fail_after, outside.knows = 1, False
    with pytest.raises(EffectUnknown, match="may have had its effect"):
        await call(registry, "queryable", "k3")
    outside.knows = True
    assert await call(registry, "queryable", "k3") == "done x"
    assert outside.effects == ["x", "x", "x"]


async def test_the_result_of_a_call_that_timed_out_is_there_later(opened: Open, outside: Outside) -> None:
    registry = opened()
    outside.gate = threading.Event()
    with pytest.raises(ToolTimeout):  # long enough for it to have begun
        await call(registry, "once", "k", timeout_s=2)
    again = asyncio.ensure_future(call(registry, "once", "k"))
    await asyncio.sleep(0.05)
    outside.gate.set()
    assert await again == "done x"
    assert outside.effects == ["x"]


async def test_a_call_that_found_no_place_has_not_happened(opened: Open, outside: Outside) -> None:
    registry = opened(slots=Slots(1))
    outside.gate = threading.Event()
    running = asyncio.ensure_future(call(registry, "once", "k"))
    await asyncio.to_thread(outside.waits.wait, 10)
    with pytest.raises(ToolNotStarted):
        await call(registry, "once", "k2", timeout_s=0.05)
    gone = asyncio.ensure_future(call(registry, "once", "k3"))
    await asyncio.sleep(0.05)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    outside.gate.set()
    assert await running == "done x"
    assert await call(registry, "once", "k2") == await call(registry, "once", "k3") == "done x"
    assert len(outside.effects) == 3


@pytest.mark.parametrize("happened", [True, False])
@pytest.mark.parametrize("asked", ["at the start", "by the caller"])
@pytest.mark.parametrize("name", RULES)
async def test_what_an_earlier_kernel_began_is_settled_by_the_rule_of_the_tool(
    opened: Open, outside: Outside, name: str, asked: str, happened: bool
) -> None:
    await left_by_a_dead_kernel(opened, outside, name, happened=happened)
    registry = opened()
    if asked == "at the start":
        await registry.start()
        await settled(registry)
    if name == "once":
        for _ in range(2):
            with pytest.raises(EffectUnknown, match="may have had its effect"):
                await call(registry, name, "k")
        assert outside.effects == (["x"] if happened else [])
    else:
        assert await call(registry, name, "k") == "done x"
        assert outside.effects == ["x"]


async def test_what_nobody_waits_for_any_more_is_not_begun(opened: Open, outside: Outside) -> None:
    await left_by_a_dead_kernel(opened, outside, "keyed", happened=False, ends_at_s=1.0)
    registry = opened()
    await registry.start()
    await settled(registry)
    assert outside.effects == []
    assert await call(registry, "keyed", "k") == "done x"


async def test_a_caller_that_went_and_came_back_at_once_is_served(opened: Open, outside: Outside) -> None:
    """A client whose connection broke sends the call again while the kernel still takes back the first."""
    registry = opened(slots=Slots(1))
    outside.gate = threading.Event()
    running = asyncio.ensure_future(call(registry, "once", "k"))
    await asyncio.to_thread(outside.waits.wait, 10)
    first = asyncio.ensure_future(call(registry, "once", "k2"))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.sleep(0)
    second = asyncio.ensure_future(call(registry, "once", "k2"))
    await asyncio.sleep(0.05)
    outside.gate.set()
    assert await running == await second == "done x"
    assert len(outside.effects) == 2


async def left_by_a_dead_kernel(
    opened: Open, outside: Outside, name: str, *, happened: bool, ends_at_s: float = 4e9
) -> None:
    """An intent without a result, and the effect or not, as a kernel leaves it that dies in between."""
    before = opened()
    assert before._guard is not None
    tool, arguments = before.checked(name, "{}")
    work = _work(tool, arguments, ToolInvoke(name=name, key="k"), ME, TimeLimit.starting_now(60.0))
    await before._guard._journal.begin(work.intent._replace(ends_at_s=ends_at_s))
    if happened:
        outside.effects.append("x")
        outside.keys[work.outside_key] = "done x"
    await before.close()


async def settled(registry: ToolRegistry) -> None:
    while registry._recoveries:
        await asyncio.gather(*registry._recoveries)


async def test_nothing_is_opened_until_there_is_an_effect(tmp_path: Path, opened: Open) -> None:
    registry = opened()
    await registry.start()
    await settled(registry)
    await call(registry, "free")
    assert not (tmp_path / "tools.db").exists()
