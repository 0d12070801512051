"""Queued calls of the program policy: the order is that of a sorted list, whatever comes, goes and is learned."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from aios_kernel.scheduler.program import ProgramPolicy
from aios_kernel.scheduler.program_queue import Waiting
from aios_kernel.scheduler.protocol import Arrived, Finished, Plan, ProgramEnded, Residency, Task, View

keys = st.integers(0, 9).map(float)
moves = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 12), keys, keys),
    st.tuples(st.just("remove"), st.integers(1, 12), keys, keys),
    st.tuples(st.just("look"), st.integers(0, 12), keys, keys),
    st.tuples(st.just("again"), st.integers(0, 12), keys, keys),
)


def task(number: int, *, length: int = 100, arrived_s: float = 0.0, priority: str = "normal") -> Task:
    return Task(
        id=number,
        program=f"p{number}",
        agent="a",
        group="g",
        priority=priority,  # type: ignore[arg-type]
        arrived_s=arrived_s,
        residency=Residency.QUEUED,
        length=length,
        pending=length,
        generated=0,
    )


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(moves, max_size=120))
def test_the_order_is_that_of_sorted_entries(steps: list[tuple[str, int, float, float]]) -> None:
    waiting, ranks, dues = Waiting(), dict[int, float](), dict[int, float]()
    for what, number, rank, due in steps:
        if what == "put":
            waiting.put(task(number), (rank,), due)
            ranks[number], dues[number] = rank, due
        elif what == "remove":
            gone = waiting.remove(number)
            assert (gone is not None) == (ranks.pop(number, None) is not None)
            dues.pop(number, None)
        elif what == "look":
            best = [entry[1] for entry in sorted((rank, number) for number, rank in ranks.items())]
            assert [each.id for each, _ in zip(waiting.ranked(), range(number), strict=False)] == best[:number]
        else:
            waiting.doubt()
            waiting.rank_again(number, turned)
            ranks = {each: waiting_rank(waiting, each) for each in ranks}
        assert len(waiting) == len(ranks)
    assert [each.id for each in waiting.ranked()] == [e[1] for e in sorted((r, n) for n, r in ranks.items())]
    now_s = 5.0
    late = sorted((due, number) for number, due in dues.items() if due <= now_s)
    assert [each.id for each in waiting.due(now_s)] == [number for _, number in late]


def turned(each: Task) -> tuple[float]:
    """Another rank than it had."""
    return (float(each.id * 7 % 5),)


def waiting_rank(waiting: Waiting, number: int) -> float:
    """The rank that a call has now, as its place was found by."""
    return waiting._tasks[number][1][0][0]


def test_ranks_are_found_anew_a_few_at_a_time() -> None:
    waiting, asked = Waiting(), list[int]()
    for number in range(10):
        waiting.put(task(number), (float(number),), 1e9)

    def rank(each: Task) -> tuple[float]:
        asked.append(each.id)
        return (-float(each.id),)

    waiting.rank_again(100, rank)
    assert asked == []  # nothing was learned
    waiting.doubt()
    waiting.rank_again(4, rank)
    assert asked == [0, 1, 2, 3]
    waiting.rank_again(100, rank)
    waiting.rank_again(100, rank)
    assert asked == [*range(10)]  # each once
    assert [each.id for each in waiting.ranked()] == [*reversed(range(10))]


def view(tasks: list[Task], room: int) -> View:
    return View(tasks, room, 1 << 20, 16, 8, 2048, True)


def decide(policy: ProgramPolicy, tasks: list[Task], now_s: float, room: int = 0) -> Plan:
    return policy.decide(view(tasks, room), now_s)


def test_what_is_learned_moves_those_that_wait_already() -> None:
    policy = ProgramPolicy({})
    short, long = task(1, length=100), task(2, length=9000, arrived_s=0.1)
    for each in (short, long):
        policy.observe(Arrived(each.id, each.program, each), each.arrived_s)
    for _ in range(40):  # programs end at 10,000 tokens: the long one is nearly through
        policy.lives.ended(10_000, 9_900, 500.0)
    policy.waiting.doubt()
    decide(policy, [short, long], 1.0)
    assert [each.id for each in policy.waiting.ranked()] == [2, 1]


def test_an_ended_program_has_the_others_ranked_anew() -> None:
    policy = ProgramPolicy({})
    first = task(9, length=5000)
    policy.observe(Arrived(9, "p9", first), 0.0)
    assert decide(policy, [first], 0.0, room=1 << 19).admit == [9]
    other = task(1, length=100)
    policy.observe(Arrived(1, "p1", other), 0.1)
    policy.observe(Finished(9, "p9"), 600.0)
    before = [*policy.waiting.ranked()]
    rank = policy.rank(other)
    policy.observe(ProgramEnded("p9"), 700.0)
    decide(policy, [other], 700.0)
    assert before == [other]
    assert policy.rank(other) != rank
    assert waiting_rank(policy.waiting, 1) == policy.rank(other)[0]
