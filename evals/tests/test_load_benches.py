"""The benches of scale, overload and attack, small: whether all ends as it should. Their times are not looked at."""

from __future__ import annotations

import itertools

import pytest

from aios_evals import attack, overload, policies_bench, scale
from aios_kernel.overload import Turns


@pytest.mark.slow
def test_every_agent_is_answered_and_leaves() -> None:
    for row in scale.run(agents=[300], rounds=2):
        assert (row["completed"], row["exited"]) == (600, 300)


@pytest.mark.slow
def test_the_refused_are_told_when_to_come_again_and_nothing_is_lost() -> None:
    peak, over, burst = overload.run(seconds=1.0, queue=32)
    assert peak["busy"] == 0
    assert burst["busy"] == 320 - 32
    for row in (over, burst):
        assert row["busy"] > 0
        assert row["retry_after_s"] > 0
        assert row["lost"] == 0
        assert row["per_s"] > 0


@pytest.mark.slow
def test_an_attack_gives_a_row_a_policy_and_kind() -> None:
    rows = attack.run(["fair"], calls=4, flood=50)
    assert [(row["policy"], row["attack"]) for row in rows] == [("fair", "flood"), ("fair", "prompt")]


def test_decisions_are_measured_for_every_policy() -> None:
    rows = policies_bench.run(steps=5, shapes=[(4, 20, 0), (4, 20, 30)])
    assert {"fifo", "fair", "priority", "program", "round_robin"} <= {row["policy"] for row in rows}
    assert [row["policy"] for row in rows if row["parked"]] == ["program"]


def test_turns_are_as_far_apart_as_calls_end() -> None:
    turns = Turns()
    for number in range(2000):
        turns.ended(0.2 * number)
    waits = [turns.next_s(400.0) for _ in range(10)]
    gaps = [after - before for before, after in itertools.pairwise(waits)]
    assert all(gap == pytest.approx(0.2, rel=0.01) for gap in gaps)
    assert max(turns.next_s(400.0) for _ in range(10_000)) <= 30.0
