"""The pool's bookkeeping alone: what is counted, what is evicted when, and that nothing is handed out while copied."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aios_kernel.engine.protocol import KvExhausted
from aios_kernel.engine.torch.blocks import BlockPool
from aios_kernel.engine.torch.prefix import extend_keys, root_key


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def chain(pool: BlockPool, name: str, length: int) -> list[int]:
    """Allocate and publish the blocks of a prefix."""
    blocks = [pool.allocate() for _ in range(length)]
    for place, block in enumerate(blocks):
        pool.publish(block, key(name, place))
    return blocks


def key(name: str, place: int) -> bytes:
    return f"{name}{place}".encode()


def idle(pool: BlockPool, name: str, length: int, **wish: Any) -> list[int]:
    """A prefix that nobody uses any longer, perhaps with a hold."""
    blocks = chain(pool, name, length)
    if wish:
        pool.hold(blocks, **({"priority": 0, "ttl_s": None, "pinned": False} | wish))
    pool.release(reversed(blocks))
    return blocks


def evictions(pool: BlockPool, names: dict[str, int]) -> list[str]:
    """Allocate everything; give the prefixes' blocks in the order in which they went."""
    gone: list[str] = []
    while pool.available:
        pool.allocate()
        gone += [
            f"{name}{place}"
            for name, length in names.items()
            for place in range(length)
            if pool.find(key(name, place)) is None and f"{name}{place}" not in gone
        ]
    return gone


def test_the_longest_unused_goes_first_and_its_tail_before_its_head() -> None:
    pool = BlockPool(7)
    idle(pool, "a", 2)
    idle(pool, "b", 2)
    blocks = [pool.find(key("a", place)) for place in range(2)]
    for block in blocks:
        pool.retain(block or 0)
    pool.release(reversed([block or 0 for block in blocks]))  # used again
    assert evictions(pool, {"a": 2, "b": 2}) == ["b1", "b0", "a1", "a0"]


def test_priority_comes_before_use() -> None:
    pool = BlockPool(7)
    idle(pool, "dear", 2, priority=2)
    idle(pool, "cheap", 2, priority=-1)
    idle(pool, "plain", 2)
    order = evictions(pool, {"dear": 2, "cheap": 2, "plain": 2})
    assert order == ["cheap1", "cheap0", "plain1", "plain0", "dear1", "dear0"]


def test_the_expired_go_before_all_others() -> None:
    clock = Clock()
    pool = BlockPool(7, clock)
    idle(pool, "plain", 2)
    idle(pool, "short", 2, priority=5, ttl_s=1.0)
    idle(pool, "long", 2, priority=5, ttl_s=100.0)
    clock.now_s = 50.0
    assert evictions(pool, {"plain": 2, "short": 2, "long": 2})[:4] == ["short1", "short0", "plain1", "plain0"]


def test_a_block_is_wanted_while_one_of_its_holds_lasts() -> None:
    clock = Clock()
    pool = BlockPool(5, clock)
    blocks = chain(pool, "a", 2)
    pool.hold(blocks, priority=5, ttl_s=1.0, pinned=False)
    lasting = pool.hold(blocks[:1], priority=1, ttl_s=None, pinned=False)
    pool.release(reversed(blocks))
    idle(pool, "b", 2)
    clock.now_s = 2.0
    assert pool.allocate() == blocks[1]  # expired
    pool.drop(lasting)
    assert evictions(pool, {"a": 1, "b": 2}) == ["b1", "b0", "a0"]  # an ended hold counts as a use


def test_using_a_prefix_again_forgives_its_expiry() -> None:
    clock = Clock()
    pool = BlockPool(5, clock)
    idle(pool, "old", 2)
    again = idle(pool, "again", 2, ttl_s=1.0)
    clock.now_s = 2.0
    for block in again:
        pool.retain(block)
    pool.release(reversed(again))
    assert evictions(pool, {"old": 2, "again": 2}) == ["old1", "old0", "again1", "again0"]


def test_pinned_blocks_stay_and_count() -> None:
    pool = BlockPool(5)
    blocks = chain(pool, "a", 2)
    pin = pool.hold(blocks, priority=0, ttl_s=0.0, pinned=True)
    pool.release(reversed(blocks))
    assert (pool.available, pool.held) == (2, 2)
    taken = [pool.allocate(), pool.allocate()]
    with pytest.raises(KvExhausted):
        pool.allocate()
    pool.release(taken)
    pool.drop(pin)
    pool.drop(pin)
    assert pool.available == 4
    assert pool.find(key("a", 0)) == blocks[0]


def test_a_block_is_not_handed_out_while_it_is_copied() -> None:
    pool = BlockPool(3)
    first, second = pool.allocate(), pool.allocate()
    done: Future[None] = Future()
    pool.copying([first], done)
    pool.release([first, second])
    assert pool.available == 2
    assert pool.allocate() == second  # no reason to wait
    order: list[str] = []

    def finish() -> None:
        order.append("copied")
        done.set_result(None)

    timer = threading.Timer(0.05, finish)
    timer.start()
    assert pool.allocate() == first
    order.append("taken")
    timer.join()
    assert order == ["copied", "taken"]


@given(
    st.lists(st.integers(0, 200), min_size=16, max_size=64),
    st.binary(max_size=8),
    st.lists(st.integers(0, 200), min_size=16, max_size=64),
    st.binary(max_size=8),
)
@settings(max_examples=200, deadline=None)
def test_blocks_are_shared_by_equal_tokens_of_one_domain_only(
    one: list[int], salt: bytes, two: list[int], other: bytes
) -> None:
    two = [*one[: len(one) // 2], *two]  # often the same beginning
    mine, theirs = [], []
    extend_keys(mine, root_key(salt), one)
    extend_keys(theirs, root_key(other), two)
    for place, (left, right) in enumerate(zip(mine, theirs, strict=False), start=1):
        assert (left == right) == (salt == other and one[: 16 * place] == two[: 16 * place])
    assert set(mine).isdisjoint(theirs) or salt == other


class PoolLife(RuleBasedStateMachine):
    """Random use of a small pool against a model of who holds what."""

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.pool = BlockPool(9, self.clock)
        self.chains: list[list[int]] = []
        self.pins: list[Any] = []
        self.holds: list[Any] = []
        self.names = 0

    @rule(length=st.integers(1, 4))
    def take(self, length: int) -> None:
        if length > self.pool.available:
            with pytest.raises(KvExhausted):
                [self.pool.allocate() for _ in range(length)]
            # what was taken before it failed is handed back by the caller
            taken = np.flatnonzero(self.pool._references)
            users = self.users()
            self.pool.release(int(block) for block in taken if not users[block])
            return
        self.names += 1
        self.chains.append(chain(self.pool, f"{self.names}/", length))

    @precondition(lambda self: self.chains)
    @rule(data=st.data())
    def attach(self, data: st.DataObject) -> None:
        name = data.draw(st.integers(1, self.names))
        found: list[int] = []
        for place in range(4):
            block = self.pool.find(key(f"{name}/", place))
            if block is None:
                break
            self.pool.retain(block)
            found.append(block)
        self.chains.append(found)

    @precondition(lambda self: self.chains)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        blocks = data.draw(st.sampled_from(self.chains))
        self.pool.share(np.array(blocks, dtype=np.int64))
        self.chains.append(list(blocks))

    @precondition(lambda self: self.chains)
    @rule(data=st.data(), forget=st.sampled_from([False, False, True]))
    def release(self, data: st.DataObject, forget: bool) -> None:
        blocks = self.chains.pop(data.draw(st.integers(0, len(self.chains) - 1)))
        for block in blocks if forget else []:
            self.pool.forget(block)
        cleared = self.pool.release(reversed(blocks))
        assert set(cleared) <= set(blocks)
        assert all(self.pool.references(block) == 0 for block in cleared)

    @precondition(lambda self: self.chains)
    @rule(data=st.data(), priority=st.integers(-2, 2), ttl_s=st.sampled_from([None, 0.0, 3.0]), pinned=st.booleans())
    def hold(self, data: st.DataObject, priority: int, ttl_s: float | None, pinned: bool) -> None:
        blocks = data.draw(st.sampled_from(self.chains))
        made = self.pool.hold(blocks, priority=priority, ttl_s=ttl_s, pinned=pinned)
        (self.pins if pinned else self.holds).append(made)

    @precondition(lambda self: self.pins or self.holds)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from([*self.pins, *self.holds]))
        self.pool.drop(hold)
        for group in (self.pins, self.holds):
            if hold in group:
                group.remove(hold)

    @rule(seconds=st.sampled_from([1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def users(self) -> list[int]:
        users = [0] * 9
        for blocks in [*self.chains, *([block for block, _ in pin.blocks] for pin in self.pins)]:
            for block in blocks:
                users[block] += 1
        return users

    @invariant()
    def the_books_are_right(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert self.pool._references.tolist() == self.users()
        assert self.pool.available + self.pool.held == self.pool.size
        listed = [*self.pool._free, *self.pool._idle._standing]
        assert sorted(listed) == [block for block in range(1, 9) if not self.users()[block]]
        for content, block in self.pool._published.items():
            assert self.pool._keys[block] == content

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            for blocks in self.chains:
                self.pool.release(reversed(blocks))
            for pin in self.pins:
                self.pool.drop(pin)
            assert self.pool.available == self.pool.size


TestPoolLife = PoolLife.TestCase
TestPoolLife.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
