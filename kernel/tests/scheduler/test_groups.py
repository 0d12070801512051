"""Policies of groups: shares by weight, nothing wasted, each group's own order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_kernel.plugins import Plugins
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.scheduler.groups import Groups
from aios_kernel.scheduler.protocol import Arrived, Plan, Residency, Task, View
from aios_kernel.scheduler.rehearsal import Call, Pool

POLICIES = Plugins().named("aios_kernel_policies")


def grouped(mine: str, rest: str = "fifo", weight: float = 1.0) -> Groups:
    return Groups(POLICIES[rest]({}), {"mine": (POLICIES[mine]({}), weight)})


@pytest.mark.parametrize("rest", ["fifo", "program"])
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40, deadline=None)
@given(
    calls=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 20), st.booleans()), min_size=1, max_size=20),
    batch=st.integers(2, 8),
    blocks=st.integers(16, 64),
)
def test_every_call_of_every_group_ends(
    policy: str, rest: str, calls: list[tuple[int, int, bool]], batch: int, blocks: int
) -> None:
    here = Pool(grouped(policy, rest), kv_tokens=16 * blocks, max_batch=batch)
    for prompt, answer, mine in calls:
        here.submit(Call(prompt, answer, group="mine" if mine else "other"))
    here.run(20_000)
    assert len(here.ended) == len(calls)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_groups_get_their_shares(weight: float) -> None:
    here = Pool(grouped("fair", weight=weight), kv_tokens=1 << 14, max_batch=16)
    chance = random.Random(3)
    for _ in range(2000):
        while len(here.tasks) < 60:
            mine = sum(task.group == "mine" for task in here.tasks.values()) < 30
            name = "mine" if mine else "other"
            here.submit(Call(chance.randint(50, 150), chance.randint(5, 20), agent=name, group=name))
        here.step()
    assert sum(here.served["mine"]) / sum(here.served["other"]) == pytest.approx(weight, rel=0.1)


def test_a_group_alone_gets_everything() -> None:
    one, plain = Pool(grouped("fifo")), Pool(POLICIES["fifo"]({}))
    for here in (one, plain):
        for number in range(30):
            here.submit(Call(50 + number, 20, group="mine"))
        here.run(5000)
    assert one.ended == plain.ended


def test_a_full_pool_is_given_back_to_a_group_below_its_share() -> None:
    here = Pool(grouped("fifo"), kv_tokens=16 * 40)
    hog = [here.submit(Call(60, 200)) for _ in range(8)]
    for _ in range(30):
        here.step()
    meek = here.submit(Call(100, 5, group="mine"))
    while meek not in here.ended:
        here.step()
        assert here.steps < 90
    assert not set(hog) & set(here.ended)


def test_what_a_group_swaps_in_is_not_free_for_the_next() -> None:
    seen: list[int] = []

    class Returning(Fifo):
        def decide(self, view: View, now_s: float) -> Plan:
            return Plan(swap_in=[1])

    class Looking(Fifo):
        def decide(self, view: View, now_s: float) -> Plan:
            seen.append(view.kv_free)
            return Plan()

    tasks = [
        Task(1, "p", "a", "mine", "normal", 0.0, Residency.SWAPPED, 100, 1, 5),
        Task(2, "q", "a", "other", "normal", 0.0, Residency.QUEUED, 50, 50, 0),
    ]
    groups = Groups(Looking({}), {"mine": (Returning({}), 1.0)})
    for task in tasks:
        groups.observe(Arrived(task.id, task.program), 0.0)
    groups.decide(View(tasks, 512, 512, 16, 4, 512, can_swap=True), 0.0)
    assert seen == [512 - 112]
