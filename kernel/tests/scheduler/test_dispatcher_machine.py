"""Arrivals, tool pauses, cancels, ends and policy switches in any order: every call ends once, nothing is left."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from aios_kernel.chat.generation import Generation
from aios_kernel.context.space import SwapSpace
from aios_kernel.engine.fake import fake_model
from aios_kernel.errors import Cancelled, OutOfMemory
from aios_kernel.plugins import Plugins
from aios_kernel.scheduler.protocol import ToolBegan, ToolEnded
from aios_kernel.syscalls import LlmResult

POLICIES = [*sorted(Plugins().named("aios_kernel_policies")), "restless"]
PROGRAMS = [f"p{number}" for number in range(6)]


class Programs(RuleBasedStateMachine):
    """What programs may do to a dispatcher over a small pool; `make_life` and `made` come from the fixtures."""

    make_life: Any = None
    made: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.life: Any = None
        self.asked: list[tuple[str, int, Generation]] = []
        self.cancelled: set[int] = set()
        self.pauses: list[str] = []

    @initialize(policy=st.sampled_from(POLICIES), blocks=st.integers(8, 24), host=st.sampled_from([0, 1 << 40]))
    def start(self, policy: str, blocks: int, host: int) -> None:
        model = fake_model(kv_tokens=16 * blocks, max_batch=4)
        self.life = self.make_life(model, self.made[policy](), SwapSpace(host))

    @rule(program=st.sampled_from(PROGRAMS), words=st.integers(0, 40))
    def arrive(self, program: str, words: int) -> None:
        self.life._talks.pop(program, None)  # short histories: the pool is small
        self.asked.append((program, words, self.life.ask(program, f"think {words}", 64)))

    @rule(program=st.sampled_from(PROGRAMS))
    def begin_tool(self, program: str) -> None:
        self.life.dispatcher.observe(ToolBegan(program, "search", 0.5))
        self.pauses.append(program)

    @precondition(lambda self: self.pauses)
    @rule()
    def end_tool(self) -> None:
        self.life.dispatcher.observe(ToolEnded(self.pauses.pop(0), "search", 0.01))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        _, _, generation = data.draw(st.sampled_from(self.asked))
        self.cancelled.add(generation.id)
        self.life.cancel(generation)

    @rule(program=st.sampled_from(PROGRAMS))
    def leave(self, program: str) -> None:
        for owner, _, generation in self.asked:
            if owner == program:  # as the kernel does: first its calls, then the program
                self.cancelled.add(generation.id)
                self.life.cancel(generation)
        self.life.leave(program)

    @rule(policy=st.sampled_from(POLICIES))
    def switch(self, policy: str) -> None:
        self.life.dispatcher.set_policy(self.made[policy]())

    @rule()
    def pause(self) -> None:
        self.life.settle()

    @precondition(lambda self: self.asked)
    @rule()
    def hear(self) -> None:
        self.life.wait([self.asked[0][2]])

    def teardown(self) -> None:
        if self.life is None:
            return
        self.life.wait([generation for _, _, generation in self.asked])
        for program in PROGRAMS:
            self.life.leave(program)
        self.life.close()
        for _, words, generation in self.asked:
            assert self.life.ends[generation.id] == 1
            self._check(words, generation)

    def _check(self, words: int, generation: Generation) -> None:
        end = generation.ended
        if isinstance(end, LlmResult):
            assert end.text == " ".join(f"w{number}" for number in range(words))
        elif generation.id not in self.cancelled:
            assert isinstance(end, OutOfMemory), end  # residents of a pool without swap space can block each other
        else:
            assert isinstance(end, Cancelled | OutOfMemory)


@pytest.mark.slow
def test_programs_in_any_order(make_life: Any, policies: Any) -> None:
    machine = cast(
        "type[RuleBasedStateMachine]", type("Machine", (Programs,), {"make_life": make_life, "made": policies})
    )
    run_state_machine_as_test(machine, settings=settings(max_examples=150, stateful_step_count=30, deadline=None))
