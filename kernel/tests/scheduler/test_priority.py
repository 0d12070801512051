"""The priority policy: classes before deadlines before arrival, preemption, and an end to patience."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_kernel.errors import ConfigError
from aios_kernel.scheduler.priority import Priority
from aios_kernel.scheduler.protocol import Options
from aios_kernel.scheduler.rehearsal import STEP_S, Call, Pool


def test_classes_come_before_deadlines_and_deadlines_before_arrival() -> None:
    here = Pool(Priority({}), max_batch=1)
    batch = here.submit(Call(30, 2, priority="batch", deadline_s=0.01))
    late = here.submit(Call(30, 2, priority="normal"))
    soon = here.submit(Call(30, 2, priority="normal", deadline_s=5.0))
    sooner = here.submit(Call(30, 2, priority="normal", deadline_s=3.0))
    first = here.submit(Call(30, 2, priority="interactive"))
    here.run(100)
    assert sorted(here.ended, key=here.ended.__getitem__) == [first, sooner, soon, late, batch]


@pytest.mark.parametrize("kv_tokens", [16 * 12, 1 << 16])
def test_a_higher_class_pushes_a_lower_one_out_of_pool_or_batch(kv_tokens: int) -> None:
    here = Pool(Priority({}), kv_tokens=kv_tokens, max_batch=2)
    slow = [here.submit(Call(60, 30, priority="batch")) for _ in range(2)]
    for _ in range(5):
        here.step()
    urgent, began = here.submit(Call(60, 10, priority="interactive")), here.steps
    here.run(500)
    assert here.ended[urgent] - began <= 11
    assert all(here.ended[task] > here.ended[urgent] for task in slow)


def test_the_same_class_is_not_pushed_out() -> None:
    here = Pool(Priority({}), kv_tokens=16 * 8, max_batch=4)
    first = here.submit(Call(100, 10, deadline_s=9.0))
    here.step()
    here.submit(Call(100, 10, deadline_s=1.0))
    here.run(500)
    assert here.log[1].swap_out == []
    assert min(here.ended, key=here.ended.__getitem__) == first


@settings(max_examples=30, deadline=None)
@given(every=st.integers(1, 6), patience=st.floats(0.2, 2.0), answer=st.integers(1, 30))
def test_a_batch_call_waits_for_its_patience_and_what_came_before_it(every: int, patience: float, answer: int) -> None:
    """The bound: nothing that arrives `patience_s` later is served first."""
    here = Pool(Priority({"patience_s": patience}), max_batch=1)
    meek = here.submit(Call(40, 5, priority="batch"))
    arrived: dict[int, float] = {}
    while meek not in here.ended:
        if here.steps % every == 0:
            arrived[here.submit(Call(40, answer, priority="interactive"))] = here.now_s
        here.step()
        assert here.steps < 10_000
    passed = [task for task in here.ended if arrived.get(task, 0.0) >= patience + STEP_S]
    assert passed == []


def test_without_patience_a_lower_class_waits() -> None:
    here = Pool(Priority({"patience_s": 0}), max_batch=1)
    meek = here.submit(Call(40, 5, priority="batch"))
    for _ in range(500):
        if here.steps % 4 == 0:
            here.submit(Call(40, 5, priority="interactive"))
        here.step()
    assert meek not in here.ended


@pytest.mark.parametrize("options", [{"patience_s": -1}, {"patience": 3}, {"patience_s": True}])
def test_impossible_options_are_refused(options: Options) -> None:
    with pytest.raises(ConfigError):
        Priority(options)
