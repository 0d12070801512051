"""What every policy of the registry must keep, against a pool without threads or an engine."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_kernel.plugins import Plugins
from aios_kernel.scheduler.protocol import Arrived, Event, Plan
from aios_kernel.scheduler.rehearsal import Call, Pool
from aios_kernel.syscalls import Priority

POLICIES = Plugins().named("aios_kernel_policies")
PRIORITIES: tuple[Priority, ...] = ("interactive", "normal", "batch")
calls = st.builds(
    Call,
    prompt=st.integers(1, 300),
    answer=st.integers(1, 30),
    agent=st.sampled_from("abc"),
    group=st.sampled_from("gh"),
    priority=st.sampled_from(PRIORITIES),
    deadline_s=st.none() | st.floats(0, 5),
)


def pool(policy: str, *, blocks: int = 64, batch: int = 8, budget: int = 128, can_swap: bool = True) -> Pool:
    return Pool(POLICIES[policy]({}), kv_tokens=16 * blocks, max_batch=batch, max_step_tokens=budget, can_swap=can_swap)


def feed(here: Pool, waves: list[list[Call]], most: int = 20_000) -> None:
    for wave in waves:
        for call in wave:
            here.submit(call)
        for _ in range(3):
            here.step()
    here.run(most)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=60, deadline=None)
@given(
    waves=st.lists(st.lists(calls, max_size=8), min_size=1, max_size=5),
    blocks=st.integers(22, 64),
    batch=st.integers(1, 8),
    budget=st.integers(16, 256),
)
def test_every_task_ends_once_and_no_plan_overcommits(
    policy: str, waves: list[list[Call]], blocks: int, batch: int, budget: int
) -> None:
    here = pool(policy, blocks=blocks, batch=batch, budget=budget)
    feed(here, waves)
    assert len(here.ended) == sum(map(len, waves))
    assert not here.refused


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=60, deadline=None)
@given(waves=st.lists(st.lists(calls, max_size=6), min_size=1, max_size=4), batch=st.integers(1, 8))
def test_something_runs_in_every_step_when_everything_fits(policy: str, waves: list[list[Call]], batch: int) -> None:
    here = pool(policy, blocks=1000, batch=batch)
    for wave in waves:
        for call in wave:
            here.submit(call)
        if here.tasks:
            assert here.step().run
    while here.tasks:
        assert here.step().run


@pytest.mark.parametrize("policy", POLICIES)
def test_without_swapping_everything_ends(policy: str) -> None:
    here = pool(policy, blocks=400, can_swap=False)
    feed(here, [[Call(prompt=100 + n, answer=20, agent=f"a{n % 3}") for n in range(30)]])
    assert len(here.ended) == 30


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_events_give_the_same_plans(policy: str) -> None:
    def plans() -> list[Plan]:
        chance = random.Random(7)
        here = pool(policy, blocks=40)
        feed(here, [[Call(chance.randint(1, 300), chance.randint(1, 40), chance.choice("abc"))] * 3 for _ in range(8)])
        return here.log

    assert plans() == plans()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("after", POLICIES)
def test_a_policy_takes_over_in_the_middle(policy: str, after: str) -> None:
    here = pool(policy, blocks=40)
    for number in range(20):
        here.submit(Call(60 + number, 25, agent=f"a{number % 4}", priority=PRIORITIES[number % 3]))
    for _ in range(10):
        here.step()
    assert here.tasks
    here.switch(POLICIES[after]({}))
    here.run(5000)
    assert len(here.ended) == 20


@pytest.mark.parametrize("policy", POLICIES)
def test_nobody_starves_while_others_keep_coming(policy: str) -> None:
    """Two calls arrive for each that ends in the time; the first batch call must end all the same."""
    options = {"priority": {"patience_s": 1.0}}.get(policy, {})
    here = Pool(POLICIES[policy](options), kv_tokens=16 * 64, max_batch=4)
    first = here.submit(Call(50, 20, agent="meek", priority="batch"))
    for _ in range(600):
        if here.steps % 6 == 0:
            for agent in "xy":
                here.submit(Call(50, 20, agent=agent, priority="interactive"))
        here.step()
        if first in here.ended:
            return
    raise AssertionError(f"waits after {here.steps} steps among {len(here.tasks)} calls")


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40, deadline=None)
@given(
    waves=st.lists(st.lists(calls, max_size=8), min_size=1, max_size=4),
    blocks=st.integers(22, 64),
    batch=st.integers(1, 8),
)
def test_a_newcomer_that_is_shown_at_once_is_treated_like_any_other(
    policy: str, waves: list[list[Call]], blocks: int, batch: int
) -> None:
    shown, unseen = pool(policy, blocks=blocks, batch=batch), pool(policy, blocks=blocks, batch=batch)
    inner, observe = unseen.policy, unseen.policy.observe

    def without_row(event: Event, now_s: float) -> None:
        observe(Arrived(event.task, event.program) if isinstance(event, Arrived) else event, now_s)

    inner.observe = without_row  # type: ignore[method-assign]
    for here in (shown, unseen):
        feed(here, waves)
    assert shown.log == unseen.log
