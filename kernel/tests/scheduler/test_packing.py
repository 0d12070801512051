"""Plans for arbitrary views: within the pool, the budget and the batch, and never empty while something could run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_kernel.errors import ConfigError
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.scheduler.packing import Packer, anyone
from aios_kernel.scheduler.protocol import Arrived, Computed, Plan, Policy, Residency, Task, View
from aios_kernel.scheduler.round_robin import RoundRobin

BLOCK = 16
RESIDENT, QUEUED, SWAPPED = Residency.RESIDENT, Residency.QUEUED, Residency.SWAPPED


def task(number: int, place: Residency, length: int, pending: int | None = None) -> Task:
    if pending is None:
        pending = length if place is QUEUED else 1
    return Task(number, f"p{number}", "a", "g", "normal", float(number), place, length, pending, 0)


def view(tasks: list[Task], free: int, *, batch: int = 8, budget: int = 64, can_swap: bool = True) -> View:
    total = free + sum(held(t) for t in tasks)
    return View(tasks, free, total, BLOCK, batch, budget, can_swap)


def blocks(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK


def held(t: Task) -> int:
    return blocks(t.length - t.pending) if t.residency is RESIDENT else 0


@st.composite
def views(draw: st.DrawFn) -> View:
    tasks: list[Task] = []
    for number in range(draw(st.integers(1, 8))):
        place = draw(st.sampled_from([RESIDENT, QUEUED, SWAPPED]))
        length = draw(st.integers(1, 150))
        pending = length if place is QUEUED else draw(st.just(1) | st.integers(1, length))
        tasks.append(task(number, place, length, pending))
    free = draw(st.integers(0, 12)) * BLOCK
    return view(
        tasks,
        free,
        batch=draw(st.integers(1, 6)),
        budget=draw(st.integers(1, 100)),
        can_swap=draw(st.booleans()),
    )


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    if draw(st.booleans()):
        return Fifo({})
    options = {"quantum": 2, "slots": draw(st.integers(0, 4)), "always_swap": draw(st.booleans())}
    return RoundRobin(options)


def check(plan: Plan, seen: View) -> None:
    tasks = {t.id: t for t in seen.tasks}
    run = dict(plan.run)
    assert len(run) == len(plan.run) <= seen.max_batch
    assert sum(run.values()) <= seen.max_step_tokens
    moved = plan.swap_out + plan.swap_in + plan.admit
    assert len(set(moved)) == len(moved)
    assert all(tasks[t].residency is RESIDENT for t in plan.swap_out)
    assert all(tasks[t].residency is SWAPPED for t in plan.swap_in)
    assert all(tasks[t].residency is QUEUED for t in plan.admit)
    assert not set(plan.swap_out) & set(run)
    assert seen.can_swap or not plan.swap_out
    free = seen.kv_free + sum(held(tasks[t]) for t in plan.swap_out)
    for number, tokens in run.items():
        t = tasks[number]
        assert 1 <= tokens <= t.pending
        assert t.residency is RESIDENT or number in plan.swap_in + plan.admit
        free -= blocks(t.length - t.pending + tokens) - held(t)
    assert free >= 0


def must_run(seen: View) -> bool:
    """Whether somebody can take a step whatever the ranking, in which nobody overtakes a newcomer."""

    def need(t: Task) -> int:
        return blocks(t.length if t.residency is not RESIDENT else t.length - t.pending + 1) - held(t)

    residents = [t for t in seen.tasks if t.residency is RESIDENT]
    if not residents:
        return all(need(t) <= seen.kv_free for t in seen.tasks)
    if any(need(t) <= seen.kv_free for t in residents):
        return True
    return seen.can_swap and all(held(t) + need(t) <= seen.kv_total for t in residents)


@settings(max_examples=400, deadline=None)
@given(seen=views(), policy=policies(), data=st.data())
def test_a_plan_fits_and_makes_progress(seen: View, policy: Policy, data: st.DataObject) -> None:
    for t in seen.tasks:
        policy.observe(Arrived(t.id, t.program), 0.0)
        for _ in range(data.draw(st.integers(0, 3))):
            policy.observe(Computed(t.id, t.program, 1, 1), 0.0)
    plan = policy.decide(seen, 1.0)
    check(plan, seen)
    assert plan.run or not must_run(seen)


@settings(max_examples=200, deadline=None)
@given(seen=views(), displace=st.booleans(), split=st.integers(0, 8))
def test_a_packer_keeps_the_limits_with_idle_residents(seen: View, displace: bool, split: int) -> None:
    idle = [t for t in seen.tasks[split:] if t.residency is RESIDENT]
    check(Packer(seen, seen.tasks[:split], anyone if displace else None, idle=idle).fill(), seen)


def test_nobody_is_swapped_out_in_vain() -> None:
    seen = view([task(0, SWAPPED, 200), task(1, RESIDENT, 30), task(2, RESIDENT, 30)], 0)
    plan = Packer(seen, seen.tasks, anyone).fill()
    assert plan.swap_out == []
    assert [number for number, _ in plan.run] == [1, 2]


def test_contexts_that_wait_for_their_turn_take_no_place_in_the_batch() -> None:
    """With as many slots as the batch, residents at the back used to fill it, and nobody ran."""
    policy = RoundRobin({"quantum": 1, "slots": 2})
    tasks = [task(0, RESIDENT, 20), task(1, RESIDENT, 20), task(2, QUEUED, 20), task(3, QUEUED, 20)]
    for t in tasks:
        policy.observe(Arrived(t.id, t.program), 0.0)
    for t in tasks[:2]:
        policy.observe(Computed(t.id, t.program, 1, 1), 0.0)
    plan = policy.decide(view(tasks, 1000, batch=2), 1.0)
    assert (plan.admit, [number for number, _ in plan.run], plan.swap_out) == ([2, 3], [2, 3], [])


def test_a_prefill_is_cut_to_the_memory_that_is_left() -> None:
    seen = view([task(0, RESIDENT, 100, 90)], 2 * BLOCK, budget=90)
    assert Packer(seen, seen.tasks).fill().run == [(0, 16 - 10 + 32)]


def test_a_blocked_newcomer_does_not_stop_a_prefill_behind_it() -> None:
    seen = view([task(0, QUEUED, 500), task(1, RESIDENT, 40, 20)], 64, can_swap=False)
    assert Packer(seen, seen.tasks).fill().run == [(1, 20)]


@pytest.mark.parametrize(
    "options", [{"quantum": 0}, {"slots": -1}, {"quantom": 3}, {"always_swap": 1}, {"quantum": "many"}]
)
def test_impossible_options_are_refused(options: dict[str, int | str]) -> None:
    with pytest.raises(ConfigError):
        RoundRobin(options)
    with pytest.raises(ConfigError):
        Fifo({"quantum": 3})
