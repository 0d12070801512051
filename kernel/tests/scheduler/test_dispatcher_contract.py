"""What holds under every policy of the registry, on the real dispatcher: answers, ends, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.context.space import SwapSpace
from aios_kernel.engine.fake import fake_model
from aios_kernel.engine.load import load_model
from aios_kernel.errors import AiosError, Cancelled
from aios_kernel.plugins import Plugins
from aios_kernel.scheduler.protocol import ToolBegan, ToolEnded
from aios_kernel.syscalls import LlmResult

POLICIES = [*sorted(Plugins().named("aios_kernel_policies")), "restless"]
ENGINES: dict[str, Callable[[int], LoadedModel]] = {
    "fake": lambda kv_tokens: fake_model(kv_tokens=kv_tokens, max_batch=4),
    "torch": lambda kv_tokens: load_model("demo", device="cpu", kv_tokens=kv_tokens),
}
TIGHT = {"fake": 64, "torch": 512}
"""Pools that hold about two of the conversations below."""


def conversations(life: Any) -> list[str]:
    """Three turns of five programs, with a tool between two turns."""
    said: list[str] = []
    for turn in range(3):
        asked = [(f"p{n}", life.ask(f"p{n}", f"think {3 + n} of {turn}")) for n in range(5)]
        for program, generation in asked:
            result = life.hear(program, generation)
            assert isinstance(result, LlmResult), result
            said.append(result.text)
            life.dispatcher.observe(ToolBegan(program, "search", 0.1))
        for program, _ in asked:
            life.dispatcher.observe(ToolEnded(program, "search", 0.1))
    return said


@pytest.fixture(scope="module")
def expected(make_life: Any, policies: Any) -> dict[str, list[str]]:
    torch.set_num_threads(1)
    found: dict[str, list[str]] = {}
    for name, load in ENGINES.items():
        life = make_life(load(4096), policies["fifo"]())
        found[name] = conversations(life)
        life.close()
    return found


@pytest.mark.parametrize("room", ["plenty", "tight", "no host memory", "disk"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("policy", POLICIES)
def test_answers_are_those_of_fifo(
    make_life: Any, policies: Any, expected: Any, policy: str, engine: str, room: str, tmp_path: Path
) -> None:
    space = {"no host memory": SwapSpace(host_bytes=0), "disk": SwapSpace(1, 1 << 30, tmp_path)}.get(room)
    pool = {"plenty": 4096, "no host memory": 4 * TIGHT[engine]}.get(room, TIGHT[engine])
    life = make_life(ENGINES[engine](pool), policies[policy](), space)
    assert conversations(life) == expected[engine]
    life.close()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_that_takes_over_midway_changes_no_answer(make_life: Any, policies: Any, policy: str) -> None:
    life = make_life(fake_model(kv_tokens=256, max_batch=4), policies["restless"]())
    for turn in range(6):
        asked = [(f"p{n}", life.ask(f"p{n}", f"think {20 + n}", 30)) for n in range(6)]
        life.dispatcher.set_policy(policies[policy if turn % 2 else "restless"]())
        for n, (program, generation) in enumerate(asked):
            result = life.hear(program, generation)
            assert isinstance(result, LlmResult), result
            assert result.text == " ".join(f"w{k}" for k in range(20 + n))
        if turn == 2:
            for n in range(6):
                life.leave(f"p{n}")
    life.close()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_calls_cancelled_in_any_state_end_once(make_life: Any, policies: Any, policy: str, engine: str) -> None:
    life = make_life(ENGINES[engine](TIGHT[engine]), policies[policy]())
    asked = [life.ask(f"p{n}", f"think {30 + n}", 24) for n in range(8)]
    for number, generation in enumerate(asked):
        if number % 2:
            life.cancel(generation)  # some are queued, some run, some are swapped out
        else:
            life.wait([generation])
    life.wait(asked)
    assert all(isinstance(generation.ended, LlmResult | Cancelled) for generation in asked)
    assert all(isinstance(generation.ended, LlmResult) for generation in asked[::2])
    for n in range(0, 8, 4):
        life.leave(f"p{n}")  # while its context may be parked, in the pool or not
    life.turn("p9", "think 3")
    life.close()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_kernel_that_stops_frees_what_is_parked(make_life: Any, policies: Any, policy: str) -> None:
    life = make_life(ENGINES["torch"](1024), policies[policy]())
    life.turn("p", "think 5")
    running = life.ask("q", "think 200", 200)
    engine, contexts = life.model.engine, life.dispatcher.contexts
    freed: list[int] = []
    close = engine.close
    engine.close = lambda: (freed.append(engine.kv_free()), close())
    life.dispatcher.stop()
    assert freed == [engine.capabilities.kv_tokens]
    assert contexts.tiers.host_bytes == 0
    assert isinstance(running.ended, LlmResult | AiosError)
