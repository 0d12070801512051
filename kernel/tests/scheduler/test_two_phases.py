"""An engine whose steps have two phases: what happened is handed on while the next step runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from aios_kernel.engine.fake import fake_model
from aios_kernel.plugins import Plugins
from aios_kernel.syscalls import LlmResult

POLICIES = sorted(Plugins().named("aios_kernel_policies"))


class TwoPhases:
    """The fake engine; nothing of a step is there before it is collected."""

    def __init__(self, engine: Any, log: list[str]) -> None:
        self._engine = engine
        self._log = log
        self.capabilities = dataclasses.replace(engine.capabilities, two_phase=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, plan: Any) -> Any:
        raise AssertionError("a step in one piece")

    def launch(self, plan: Any) -> Any:
        self._log.append("launch")
        return plan

    def collect(self, launched: Any) -> Any:
        self._log.append("collect")
        return self._engine.step(launched)


def model(log: list[str], **options: int) -> Any:
    loaded = fake_model(**options)
    engine: Any = TwoPhases(loaded.engine, log)
    return dataclasses.replace(loaded, engine=engine)


@pytest.mark.parametrize("policy", POLICIES)
def test_answers_are_the_same_under_every_policy(make_life: Any, policies: Any, policy: str) -> None:
    log: list[str] = []
    life = make_life(model(log, kv_tokens=64, max_batch=4), policies[policy]())
    asked = [life.ask(f"p{n}", f"think {3 + n}") for n in range(5)]
    for n, generation in enumerate(asked):
        result = life.hear(f"p{n}", generation)
        assert isinstance(result, LlmResult), result
        assert result.text == " ".join(f"w{k}" for k in range(3 + n))
    life.close()
    assert log.count("launch") == log.count("collect") > 0


def test_tokens_are_handed_on_while_the_next_step_runs(make_life: Any, policies: Any) -> None:
    log: list[str] = []
    life = make_life(model(log, kv_tokens=4096), policies["fifo"]())
    deliver = life.dispatcher._deliver

    def told(updates: Any) -> None:
        log.append("deliver")
        deliver(updates)

    life.dispatcher._deliver = told
    assert isinstance(life.hear("p", life.ask("p", "think 12", 30, stream=True)), LlmResult)
    life.close()
    middle = "".join({"launch": "l", "collect": "c", "deliver": "d"}[word] for word in log)
    assert middle.count("ldc") >= 10
    assert "cdl" not in middle  # between two steps nobody waits for anything
