"""The expert cache under any order of requests: its size, what is in use, failed reads, and that nothing hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_kernel.engine.torch.experts.cache import ExpertCache
from aios_kernel.errors import ConfigError, EngineError

COUNT = 12
SMALL, LARGE = 3, 8


class Slot:
    """Memory that knows what is in it and who uses it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.number: int | None = None
        self.used = self.filling = False


@dataclass
class Disk:
    """Where experts come from; keeps account of all slots, and notes what must not be."""

    budget: int
    small: frozenset[int]
    broken: set[int] = field(default_factory=set)
    delay_s: float = 0.0
    wrong: list[str] = field(default_factory=list)
    reads: int = 0
    slots: set[Any] = field(default_factory=set)

    def size(self, number: int) -> int:
        return SMALL if number in self.small else LARGE

    def make(self, number: int) -> Slot:
        slot = Slot(self.size(number))
        self.slots.add(slot)
        if sum(each.size for each in self.slots) > self.budget:
            self.wrong.append("more memory than stated")
        return slot

    def load(self, number: int, slot: Slot) -> None:
        if slot.used or slot.filling:
            self.wrong.append("filled while it was in use")
        if slot.size != self.size(number):
            self.wrong.append("a slot of another size")
        slot.filling, slot.number = True, None
        self.reads += 1
        time.sleep(self.delay_s)
        slot.filling = False
        if number in self.broken:
            raise OSError("bad sector")
        slot.number = number

    def release(self, slot: Slot) -> None:
        slot.used = False

    def drop(self, slot: Slot) -> None:
        if slot.used or slot.filling:
            self.wrong.append("given up while it was in use")
        self.slots.remove(slot)

    def cache(self, ranking: Any) -> ExpertCache[Slot]:
        return ExpertCache(COUNT, self.budget, self, ranking)


@dataclass
class Order:
    """A ranking that is set by hand."""

    order: Sequence[float] = tuple(range(COUNT))

    def distances(self) -> Any:
        return np.array(self.order, dtype=float)


def take(cache: ExpertCache[Slot], numbers: Iterable[int], ahead: Iterable[int] = (), stop: int = COUNT) -> list[int]:
    """Use experts one after the other as a layer does; leave after `stop` of them."""
    got: list[int] = []
    experts = cache.each([*numbers], [*ahead])
    for number, slot in experts:
        slot.used = True
        assert slot.number == number
        time.sleep(0)  # let the readers do what they want meanwhile
        assert slot.number == number
        got.append(number)
        if len(got) == stop:
            experts.close()
    return got


numbers = st.lists(st.integers(0, COUNT - 1), max_size=COUNT, unique=True)
requests = st.tuples(
    numbers, numbers, st.permutations(range(COUNT)), st.integers(1, COUNT), st.sets(st.integers(0, 11))
)


@settings(max_examples=150, deadline=None)
@given(
    budget=st.integers(LARGE, COUNT * LARGE),
    small=st.frozensets(st.integers(0, COUNT - 1), max_size=6),
    asked=st.lists(requests, max_size=12),
)
def test_never_more_bytes_than_stated_and_nothing_in_use_is_evicted(
    budget: int, small: frozenset[int], asked: list[Any]
) -> None:
    if len(small) == COUNT:
        return
    disk, order = Disk(budget, small), Order()
    cache = disk.cache(order)
    try:
        for wanted, ahead, ranks, stop, broken in asked:
            order.order, disk.broken = ranks, set(broken)
            try:
                got = take(cache, wanted, ahead, stop)
            except EngineError as error:
                if "bad sector" not in str(error) or not broken & set(wanted):
                    raise
            else:
                assert len(got) == len(set(got)) == min(len(wanted), stop)
            assert cache.taken_bytes <= budget
        disk.broken = set()
        assert sorted(take(cache, range(COUNT))) == [*range(COUNT)]
    finally:
        cache.close()
    assert not disk.wrong
    assert not disk.slots
    assert cache.taken_bytes == 0


def test_a_cache_that_holds_no_expert_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds no expert") as caught:
        Disk(LARGE - 1, frozenset()).cache(Order())
    assert caught.value.fix


def test_a_failed_read_is_told_once_and_tried_again() -> None:
    disk = Disk(4 * LARGE, frozenset(), broken={3})
    cache = disk.cache(Order())
    with pytest.raises(EngineError, match="expert 3 could not be read: OSError: bad sector"):
        take(cache, [1, 3])
    disk.broken.clear()
    assert sorted(take(cache, [1, 3])) == [1, 3]
    assert cache.counts.failed == 1
    cache.close()


def test_a_read_ahead_that_fails_is_tried_again_by_whoever_needs_it() -> None:
    disk = Disk(4 * LARGE, frozenset())
    cache = disk.cache(Order())
    needed = threading.Event()

    def load(number: int, slot: Slot) -> None:
        disk.load = real  # type: ignore[method-assign]
        assert needed.wait(timeout=30)
        raise OSError("bad sector")

    take(cache, [1])
    disk.load, real = load, disk.load  # type: ignore[method-assign]
    take(cache, [1], ahead=[2])
    eventually(lambda: 2 in cache._loading)
    experts = cache.each([1, 2])
    assert next(experts)[0] == 1
    needed.set()
    assert [number for number, _ in experts] == [2]
    assert (cache.counts.late, cache.counts.failed) == (1, 1)
    cache.close()


def test_no_memory_for_a_slot_is_a_failed_read() -> None:
    disk = Disk(4 * LARGE, frozenset())
    cache = disk.cache(Order())

    def make(number: int) -> Slot:
        raise MemoryError("no room")

    disk.make, real = make, disk.make  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="MemoryError"):
        take(cache, [1], ahead=[2])
    disk.make = real  # type: ignore[method-assign]
    assert take(cache, [1]) == [1]
    cache.close()


def test_the_farthest_is_evicted_first() -> None:
    disk = Disk(3 * LARGE, frozenset())
    cache = disk.cache(Order([5, 1, 9, 2, *range(8)]))
    take(cache, [0, 1, 2])
    take(cache, [3])
    assert np.flatnonzero(cache.resident).tolist() == [0, 1, 3]
    cache.close()


def eventually(condition: Any) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_reading_ahead_evicts_nothing_that_is_needed_sooner() -> None:
    disk = Disk(3 * LARGE, frozenset())
    cache = disk.cache(Order([5, 1, 9, 4, 8, *range(7)]))
    take(cache, [0, 1, 2])
    take(cache, [0], ahead=[3, 4])
    eventually(lambda: not cache._wishes and not cache._loading)
    assert np.flatnonzero(cache.resident).tolist() == [0, 1, 3]  # 3 for 2; 4 is no nearer than any
    assert take(cache, [3]) == [3]
    assert (cache.counts.hits, cache.counts.misses, cache.counts.prefetched) == (2, 3, 1)
    cache.close()


def test_what_is_read_ahead_is_waited_for_and_not_read_twice() -> None:
    disk = Disk(4 * LARGE, frozenset())
    cache = disk.cache(Order())
    take(cache, [1])
    disk.delay_s = 0.2
    take(cache, [1], ahead=[2])
    eventually(lambda: 2 in cache._loading)
    assert take(cache, [2]) == [2]
    assert (disk.reads, cache.counts.late) == (2, 1)
    cache.close()


def test_closing_ends_a_wait() -> None:
    disk = Disk(LARGE, frozenset(), delay_s=0.2)
    cache = disk.cache(Order())
    caught: list[Exception] = []

    def ask() -> None:
        try:
            take(cache, [1, 2, 3])
        except EngineError as error:
            caught.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: disk.reads)
    cache.close()
    asking.join(timeout=30)
    assert not asking.is_alive()
    assert len(caught) == 1
