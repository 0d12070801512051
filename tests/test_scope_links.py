"""A run whose connection is lost, whose kernel has gone, or whose consumer has seen enough."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator

import pytest

import aios_adapters as aios
from aios_adapters import _kernel
from aios_adapters._scope import Scope
from aios_adapters.testing import KernelHandle
from aios_kernel.client import stop_in_process
from aios_kernel.syscalls import LlmChat, LlmDelta, Message, ToolBegin, ToolGrant


def _chat(text: str) -> LlmChat:
    return LlmChat(messages=[Message("user", text)])


def test_a_run_goes_on_as_another_program_when_its_connection_was_cut(fake_kernel: KernelHandle) -> None:
    with aios.running("team") as team:
        assert team is not None
        child = team.child("worker", "test")
        assert child.chat(_chat("say one")).text == "one"
        team.link.connect().close()
        assert fake_kernel.wait_for(lambda: all(row.state == "finished" for row in fake_kernel.ps()))
        assert child.chat(_chat("say two")).text == "two"
    assert fake_kernel.wait_for(lambda: all(row.state == "finished" for row in fake_kernel.ps()))
    gone = "its client has gone"
    expected = {("team", None), ("team", gone), ("team/worker", None), ("team/worker", gone)}
    assert {(row.agent, row.error) for row in fake_kernel.ps()} == expected


def test_a_run_that_ends_after_its_kernel_starts_none(
    fake_kernel: KernelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*args: object, **kwargs: object) -> None:
        raise AssertionError("nobody asked for a kernel")

    with aios.running("late") as scope:
        assert scope is not None
        scope.chat(_chat("x"))
        grant = scope.call(ToolBegin(name="search"), ToolGrant)
        stop_in_process(fake_kernel.config)
        monkeypatch.setattr(_kernel, "connect", connect)
        scope._tool_failed(grant, ValueError("no"))


def test_a_stream_that_is_left_early_is_no_failure(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="talker")
    def talk() -> Generator[str]:
        scope = aios.current()
        assert scope is not None
        for piece in scope.stream(_chat("think 5000")):
            if isinstance(piece, LlmDelta):
                yield piece.text

    steps = talk()
    next(steps)
    steps.close()
    assert fake_kernel.wait_for(lambda: fake_kernel.ps()[0].state == "finished")
    assert fake_kernel.ps()[0].error is None


async def test_a_cancelled_caller_does_not_wait_for_the_start(
    fake_kernel: KernelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Scope._ensure_spawned

    def slow(self: Scope) -> None:
        time.sleep(1.5)
        real(self)

    with aios.running("hasty") as scope:
        assert scope is not None
        monkeypatch.setattr(Scope, "_ensure_spawned", slow)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(scope.achat(_chat("x")), 0.05)
        assert time.monotonic() - began < 1.0
        await asyncio.sleep(1.6)
