"""The program policy: whom it admits, what it keeps, stows, drops and fetches, and what it learns of pauses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from aios_kernel.errors import ConfigError
from aios_kernel.scheduler.program import ProgramPolicy
from aios_kernel.scheduler.program_pauses import History, Pauses
from aios_kernel.scheduler.protocol import (
    Arrived,
    Computed,
    Finished,
    Options,
    Parked,
    Plan,
    ProgramEnded,
    Residency,
    Task,
    ToolBegan,
    ToolEnded,
    View,
)
from aios_kernel.scheduler.rehearsal import Call, Pool
from aios_kernel.syscalls import Priority

BLOCK = 16
RESIDENT, QUEUED, SWAPPED = Residency.RESIDENT, Residency.QUEUED, Residency.SWAPPED


def queued(number: int, length: int, *, priority: Priority = "normal", held: int = 0, at: float = 0.0) -> Task:
    return Task(number, f"p{number}", "a", "g", priority, at, QUEUED, length, length - held, 0)


def decoding(number: int, length: int) -> Task:
    return Task(number, f"p{number}", "a", "g", "normal", 0.0, RESIDENT, length, 1, 5)


def parked(number: int, length: int, residency: Residency = RESIDENT) -> Parked:
    return Parked(f"p{number}", "g", "normal", residency, length, 0.0)


def seen(tasks: list[Task], free: int, kept: list[Parked] | None = None, *, host: int = 0, total: int = 4096) -> View:
    return View(tasks, free, total, BLOCK, 8, 512, host > 0, tuple(kept or ()), host)


def policy(tasks: list[Task], options: Options | None = None) -> ProgramPolicy:
    made = ProgramPolicy(options or {})
    for task in tasks:
        made.observe(Arrived(task.id, task.program), task.arrived_s)
    return made


def paused(made: ProgramPolicy, number: int, tool: str, expected_s: float) -> None:
    made.observe(Finished(number, f"p{number}"), 0.0)
    made.observe(ToolBegan(f"p{number}", tool, expected_s), 0.0)


def ending(made: ProgramPolicy, number: int, first: int, final: int, stay_s: float, at: float) -> None:
    """A program lives through a policy: a short call, a long one, and its end."""
    for length, since_s in ((first, at), (final, at + stay_s)):
        task = queued(number, length, at=since_s)
        made.observe(Arrived(number, task.program), since_s)
        made.decide(seen([task], 1 << 20, total=1 << 20), since_s)
        made.observe(Finished(number, task.program), since_s)
    made.observe(ProgramEnded(f"p{number}"), at + stay_s)


def test_the_program_that_is_soonest_through_comes_first() -> None:
    """Contexts end at some 4,000 tokens here, so that one of 3,000 has less to go than one of 1,000."""
    made = ProgramPolicy({"stretch": 10.0})
    for number in range(40):
        ending(made, 100 + number, 500, 4000, 35.0, 1.0)
    tasks = [queued(1, 1024, at=100.0), queued(2, 3008, at=110.0)]
    for task in tasks:
        made.observe(Arrived(task.id, task.program), task.arrived_s)
    assert made.decide(seen(tasks, 4900, total=8192), 120.0).admit[:1] == [2]


def test_a_program_is_overtaken_by_none_that_comes_much_later() -> None:
    """By none later than `stretch` times its expected rest: here 30 s for 3,000 tokens."""
    tasks = [queued(1, 1024, at=100.0), queued(2, 3008, at=130.0)]
    for stretch, expected in ((0.5, 1), (10.0, 2)):
        made = ProgramPolicy({"stretch": stretch})
        for number in range(40):
            ending(made, 100 + number, 500, 4000, 35.0, 1.0)
        made.observe(Arrived(1, "p1"), 100.0)
        made.decide(seen(tasks[:1], 0, total=8192), 100.0)
        made.observe(Arrived(2, "p2"), 130.0)
        assert made.decide(seen(tasks, 4900, total=8192), 130.0).admit[:1] == [expected]


def test_by_service_the_program_with_the_least_comes_first() -> None:
    first, second = queued(1, 1024), queued(2, 1024, at=1.0)
    for order, expected in (("service", [2]), ("arrival", [1])):
        made = policy([first, second], {"order": order})
        made.observe(Computed(9, "p1", 500, 1), 0.5)
        assert made.decide(seen([first, second], 1600), 2.0).admit == expected


def test_service_counts_for_the_family() -> None:
    child = replace(queued(1, 1024), root="top")
    other = queued(2, 1024, at=1.0)
    made = policy([child, other], {"order": "service"})
    made.observe(Computed(9, "top", 500, 1), 0.5)
    assert made.decide(seen([child, other], 1600), 2.0).admit == [2]


def test_a_better_class_comes_first_and_is_prefilled_first() -> None:
    tasks = [queued(1, 600, priority="batch"), queued(2, 700, priority="interactive", at=1.0)]
    plan = policy(tasks).decide(seen(tasks, 4096), 2.0)
    assert plan.admit == [2, 1]
    assert plan.run == [(2, 512)]


def test_calls_that_a_program_makes_at_once_run_at_once_where_there_is_room() -> None:
    siblings = [replace(queued(number, 200, at=number / 10), program="p1") for number in range(1, 5)]
    made = policy(siblings, {"margin": 16})
    assert made.decide(seen(siblings, 4096), 2.0).admit == [1, 2, 3, 4]
    made = policy(siblings, {"margin": 16})
    # 512 are kept for one call to end in; what is left takes two calls of 208 and the room of 16 for each to grow.
    assert made.decide(seen(siblings, 512 + 2 * 224, total=8192), 2.0).admit == [1, 2]


def test_a_call_that_is_due_is_admitted_once() -> None:
    siblings = [replace(queued(number, 200, at=number / 10), program="p1") for number in range(1, 4)]
    made = policy(siblings, {"margin": 16, "patience": 0.0})
    assert made.decide(seen(siblings, 4096), 9.0).admit == [1, 2, 3]


def test_returned_programs_that_hold_what_the_others_lack_do_not_wait_for_each_other() -> None:
    tasks = [queued(1, 512, held=376), queued(2, 320, held=249)]
    plan = policy(tasks).decide(seen(tasks, 48, [parked(1, 378), parked(2, 262)], total=704), 2.0)
    assert (plan.admit, plan.drop) == ([1], ["p2"])
    plan = policy(tasks).decide(seen(tasks, 48, [parked(1, 378), parked(2, 262)], host=400, total=704), 2.0)
    assert (plan.admit, plan.stow) == ([1], ["p2"])


def test_a_parent_that_waits_for_its_child_gives_way_to_it() -> None:
    """Nothing runs and the pool is full of contexts that nobody may have; patience would last for ever."""
    child = replace(queued(2, 130), root="p1")
    made = policy([child], {"hold": 1e9})
    made.observe(Finished(1, "p1"), 0.0)
    plan = made.decide(seen([child], 48, [parked(1, 600)], total=704), 1.0)
    assert (plan.admit, plan.drop, plan.patient) == ([2], ["p1"], False)
    stranger = replace(child, root="")
    made = policy([stranger], {"hold": 1e9})
    made.observe(Finished(1, "p1"), 0.0)
    assert made.decide(seen([stranger], 48, [parked(1, 600)], total=704), 1.0).patient


def test_a_short_new_call_is_not_stuck_behind_a_long_prefill() -> None:
    long = Task(1, "p1", "a", "g", "normal", 0.0, RESIDENT, 3000, 2000, 0)
    short = queued(2, 40, at=1.0)
    plan = policy([long, short]).decide(seen([long, short], 3000, total=8192), 2.0)
    assert plan.run == [(2, 40), (1, 472)]


def test_prefill_beside_decoding_is_cut_to_the_chunk() -> None:
    tasks = [decoding(1, 100), queued(2, 900)]
    assert policy(tasks, {"chunk": 100}).decide(seen(tasks, 3000), 1.0).run == [(1, 1), (2, 100)]


def test_a_new_program_waits_whole_when_the_working_set_would_not_fit() -> None:
    """The contexts that are in will grow to what ended programs had; room is kept for that."""
    made = policy([running := decoding(1, 1000), new := queued(2, 1500)], {"grow": 1.0})
    roomy = seen([running, new], 3000)
    assert made.decide(roomy, 1.0).admit == [2]
    made = ProgramPolicy({"grow": 1.0})
    ending(made, 9, 100, 3900, 0.5, 0.0)
    for task in (running, new):
        made.observe(Arrived(task.id, task.program), 1.0)
    assert made.decide(roomy, 2.0).admit == []


@pytest.mark.parametrize(("rest_s", "host", "stow", "drop"), [
    (0.05, 0, [], []),  # soon back: the newcomer waits
    (500.0, 0, [], ["p1"]),
    (500.0, 4096, ["p1"], []),
    (500.0, 100, [], ["p1"]),  # does not fit the host
])  # fmt: skip
def test_a_context_is_kept_for_a_time_over_a_pause(rest_s: float, host: int, stow: list[str], drop: list[str]) -> None:
    first = queued(1, 3000)
    made = policy([first])
    made.decide(seen([first], 4096), 0.0)
    paused(made, 1, "build", rest_s)
    new = queued(2, 3000)
    made.observe(Arrived(2, "p2"), 0.01)
    plan = made.decide(seen([new], 1000, [parked(1, 3000)], host=host), 0.01)
    assert (plan.stow, plan.drop) == (stow, drop)
    assert plan.admit == ([2] if stow or drop else [])
    assert plan.patient == (not plan.admit)


def test_nothing_is_given_up_while_nobody_needs_room() -> None:
    made = policy([first := queued(1, 3000)])
    made.decide(seen([first], 4096), 0.0)
    paused(made, 1, "build", 900.0)
    assert made.decide(seen([], 1000, [parked(1, 3000)], host=4096), 100.0) == Plan()


def test_swapping_that_is_slower_than_computing_is_not_done() -> None:
    made = policy([first := queued(1, 3000)], {"swap_speed": 0.5})
    made.decide(seen([first], 4096), 0.0)
    paused(made, 1, "build", 500.0)
    made.observe(Arrived(2, "p2"), 0.01)
    plan = made.decide(seen([queued(2, 3000)], 1000, [parked(1, 3000)], host=4096), 0.01)
    assert (plan.stow, plan.drop) == ([], ["p1"])


def test_a_stowed_context_comes_back_when_its_tool_returns() -> None:
    made = policy([first := queued(1, 3000)])
    made.decide(seen([first], 4096), 0.0)
    paused(made, 1, "build", 500.0)
    kept = [parked(1, 3000, SWAPPED)]
    assert made.decide(seen([], 4096, kept, host=4096), 1.0).fetch == []
    made.observe(ToolEnded("p1", "build", 2.0), 2.0)
    assert made.decide(seen([], 4096, kept, host=4096), 2.0).fetch == ["p1"]


def test_the_call_of_a_stowed_context_fetches_it_before_it_runs() -> None:
    task = queued(1, 3200)
    plan = policy([task]).decide(seen([task], 4096, [parked(1, 3000, SWAPPED)], host=4096), 1.0)
    assert plan.fetch == ["p1"]


def test_a_call_whose_deadline_nears_is_not_overtaken() -> None:
    new, old = queued(1, 3000, at=5.0), queued(2, 3000, at=0.0)
    urgent = replace(old, deadline_s=10.0)
    for task, expected in ((old, [1]), (urgent, [2])):
        made = policy([task, new], {"order": "service"})
        made.observe(Computed(9, "p2", 500, 1), 0.5)
        assert made.decide(seen([task, new], 3400), 9.0).admit == expected


def test_a_context_that_shares_nothing_with_its_next_call_is_dropped() -> None:
    task = queued(1, 3000)
    plan = policy([task]).decide(seen([task], 1000, [parked(1, 3000)]), 1.0)
    assert (plan.drop, plan.admit) == (["p1"], [1])


def test_calls_that_outgrow_the_pool_leave_enough_for_the_oldest_to_end() -> None:
    tasks = [decoding(number, 1008 + 1) for number in range(4)]
    assert policy(tasks).decide(seen(tasks, 64), 1.0).run == [(0, 1)]


@pytest.mark.parametrize(
    "options", [{"hold": -1}, {"order": "best"}, {"chunk": 0}, {"preempt": 1}, {"stretch": -1}, {"fast": True}]
)
def test_impossible_options_are_refused(options: Options) -> None:
    with pytest.raises(ConfigError):
        ProgramPolicy(options)


def test_pauses_are_learned_for_each_agent_and_tool() -> None:
    pauses = Pauses(30.0)
    for program, agent in (("p", "a"), ("q", "b")):
        pauses.name_agent(program, agent)
    for _ in range(40):
        pauses.tool_began("p", "grep", None, 0.0)
        pauses.tool_ended("p", "grep", 2.0, 2.0)
    pauses.tool_began("p", "grep", None, 10.0)
    assert pauses.remaining("p", 10.0) == pytest.approx(2.0)
    pauses.tool_began("q", "grep", None, 10.0)
    assert pauses.remaining("q", 10.0) == pytest.approx(30.0)
    pauses.tool_began("q", "grep", 7.0, 10.0)
    assert pauses.remaining("q", 10.0) == pytest.approx(7.0)


def test_nothing_is_learned_of_a_tool_that_goes_on() -> None:
    pauses = Pauses(30.0)
    pauses.name_agent("p", "a")
    for _ in range(40):
        pauses.tool_began("p", "build", 600.0, 0.0)
        pauses.tool_ended("p", "build", None, 0.1)
    assert pauses.remaining("p", 0.1) == pytest.approx(0.0), "its next call is due"
    pauses.tool_began("p", "build", 600.0, 10.0)
    assert pauses.remaining("p", 10.0) == pytest.approx(600.0)


def test_a_pause_longer_than_all_before_is_expected_to_last_as_long_again() -> None:
    history = History()
    for seconds in (1.0, 2.0, 3.0):
        history.add(seconds)
    assert history.remaining(50.0, 30.0) == pytest.approx(50.0)


@given(st.lists(st.floats(0, 1e4), min_size=40, max_size=400), st.floats(0, 1e4))
def test_the_expected_rest_is_the_mean_over_longer_pauses(past: list[float], elapsed: float) -> None:
    history = History()
    for seconds in past:
        history.add(seconds)
    longer = [seconds - elapsed for seconds in past[-256:] if seconds > elapsed]
    if longer:
        assert history.remaining(elapsed, 30.0) == pytest.approx(sum(longer) / len(longer), rel=1e-6, abs=1e-6)


def test_an_interactive_call_takes_the_place_of_a_batch_call() -> None:
    batch = [replace(decoding(number, 1001), priority="batch") for number in (1, 2)]
    tasks = [*batch, queued(3, 900, priority="interactive", at=1.0)]
    plan = policy(tasks, {"margin": 16}).decide(seen(tasks, 320, host=4096), 1.0)
    assert (plan.swap_out, plan.admit) == ([2], [3])
    assert {number for number, _ in plan.run} == {1, 3}
    plan = policy(tasks, {"margin": 16, "preempt": False}).decide(seen(tasks, 320, host=4096), 1.0)
    assert (plan.swap_out, plan.admit) == ([], [])


@pytest.mark.parametrize("host", [0, 500])
def test_a_running_call_that_cannot_be_saved_is_not_preempted(host: int) -> None:
    tasks = [replace(decoding(1, 1001), priority="batch"), queued(3, 900, priority="interactive", at=1.0)]
    plan = policy(tasks, {"margin": 16}).decide(seen(tasks, 320, host=host), 1.0)
    assert (plan.swap_out, plan.admit) == ([], [])


@pytest.mark.parametrize(("host", "stow", "drop"), [(0, [], ["p1"]), (4096, ["p1"], [])])
def test_an_interactive_call_takes_the_room_of_a_paused_batch_program(
    host: int, stow: list[str], drop: list[str]
) -> None:
    """However soon that one is expected back; one of its own class keeps it for its time."""
    new = queued(2, 3000, priority="interactive")
    for kept, gone in ((replace(parked(1, 3000), priority="batch"), True), (
        replace(parked(1, 3000), priority="interactive"), False)):  # fmt: skip
        made = policy([])
        paused(made, 1, "build", 0.05)
        made.observe(Arrived(2, "p2"), 0.01)
        plan = made.decide(seen([new], 1000, [kept], host=host), 0.01)
        assert (plan.stow, plan.drop, plan.admit) == ((stow, drop, [2]) if gone else ([], [], []))


def test_what_was_preempted_stays_out_while_a_better_class_waits() -> None:
    saved = replace(decoding(1, 1001), priority="batch", residency=SWAPPED)
    urgent = queued(2, 2000, priority="interactive", at=1.0)
    runs = replace(decoding(3, 1001), priority="interactive")
    made = policy([saved, runs, urgent])
    assert made.decide(seen([saved, runs, urgent], 1400, host=4096), 2.0).swap_in == []
    made.observe(Finished(2, "p2"), 3.0)
    assert made.decide(seen([saved, runs], 2800, host=4096), 3.0).swap_in == [1]


def test_interactive_calls_wait_for_each_other_only() -> None:
    """A pool full of long batch answers; urgent calls come one after the other, and everything ends."""
    for preempt, late in ((True, 40), (False, 200)):
        here = Pool(ProgramPolicy({"margin": 16, "preempt": preempt}), kv_tokens=2048, host_tokens=4096)
        for _ in range(6):
            here.submit(Call(prompt=300, answer=400, priority="batch"))
        for _ in range(40):
            here.step()
        waits: list[int] = []
        for _ in range(5):
            began, number = here.steps, here.submit(Call(prompt=300, answer=10, priority="interactive"))
            while number not in here.ended:
                here.step()
            waits.append(here.ended[number] - began)
        assert (max(waits) < late) is preempt
        here.run(20_000)
        assert len(here.ended) == 11


@st.composite
def states(draw: st.DrawFn) -> View:
    tasks: list[Task] = []
    kept: list[Parked] = []
    used = 0
    for number in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["resident", "queued", "hot", "stowed", "paused"]))
        length = draw(st.integers(2, 400))
        if kind == "resident":
            pending = draw(st.just(1) | st.integers(1, length))
            tasks.append(replace(decoding(number, length), pending=pending, generated=int(pending == 1)))
            used += -(-(length - pending) // BLOCK) * BLOCK
        else:
            place = SWAPPED if kind == "stowed" else RESIDENT
            if kind != "queued":
                kept.append(parked(number, length, place))
                used += -(-length // BLOCK) * BLOCK if place is RESIDENT else 0
            if kind != "paused":
                tasks.append(queued(number, length + 10, held=length if kind == "hot" else 0))
    free = draw(st.integers(0, 30)) * BLOCK
    return seen(tasks, free, kept, host=draw(st.sampled_from([0, 200, 4000])), total=used + free)


@settings(max_examples=400, deadline=None)
@given(seen_view=states(), now_s=st.floats(0, 1e4))
def test_a_plan_fits_the_pool_and_the_host(seen_view: View, now_s: float) -> None:
    tasks = {task.id: task for task in seen_view.tasks}
    kept = {each.program: each for each in seen_view.parked}
    plan = policy([*seen_view.tasks]).decide(seen_view, now_s)
    assert len({*plan.stow, *plan.fetch, *plan.drop}) == len(plan.stow + plan.fetch + plan.drop)
    free, host = seen_view.kv_free, seen_view.host_free
    for name in plan.stow + plan.drop:
        assert kept[name].residency is RESIDENT
        free += -(-kept[name].length // BLOCK) * BLOCK
    host -= sum(kept[name].length for name in plan.stow)
    assert host >= 0
    free -= sum(-(-kept[name].length // BLOCK) * BLOCK for name in plan.fetch)
    assert sum(tokens for _, tokens in plan.run) <= seen_view.max_step_tokens
    for number, tokens in plan.run:
        task = tasks[number]
        assert 1 <= tokens <= task.pending
        assert task.residency is RESIDENT or number in plan.admit
        free -= seen_view.kv_need(task, tokens)
        if task.program in plan.fetch:  # taken up by the call
            free += -(-kept[task.program].length // BLOCK) * BLOCK
        if task.program in plan.drop + plan.stow:  # its own context counted as free
            free -= seen_view.kv_held(task)
    assert free >= 0
