"""Places: limits hold, nobody starves, whoever gives up holds nothing."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from aios_kernel.tools import Demand, Slots


async def turn() -> None:
    """Let everything that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_owners_take_turns_however_much_one_asks_for() -> None:
    slots, order = Slots(), list[str]()
    demand = Demand("t", max_running=1)
    assert slots.take_now(demand)

    async def one(owner: str) -> None:
        await slots.take(demand, owner)
        order.append(owner)
        slots.give(demand)

    tasks = [asyncio.create_task(one("greedy")) for _ in range(100)]
    await turn()
    tasks += [asyncio.create_task(one("modest")) for _ in range(3)]
    await turn()
    assert slots.waiting == 103
    slots.give(demand)
    await asyncio.gather(*tasks)
    assert order[:6] == ["greedy", "modest"] * 3
    assert Counter(order) == {"greedy": 100, "modest": 3}


async def test_a_waiter_that_gives_up_holds_nothing() -> None:
    slots, demand = Slots(), Demand("t", max_running=1)
    assert slots.take_now(demand)
    first, second = (asyncio.create_task(slots.take(demand, owner)) for owner in "ab")
    await turn()
    first.cancel()
    slots.give(demand)  # in the same turn of the loop: the place must go to the second
    await asyncio.gather(first, second, return_exceptions=True)
    assert first.cancelled()
    assert not slots.take_now(demand)
    third = asyncio.create_task(slots.take(demand, "c"))
    await turn()
    slots.give(demand)
    third.cancel()  # granted already, and not told yet
    with pytest.raises(asyncio.CancelledError):
        await third
    assert slots.take_now(demand)
    assert slots.waiting == 0


async def test_who_needs_other_places_does_not_wait() -> None:
    slots = Slots(threads=2)
    assert slots.take_now(Demand("a", exclusive="machine", pool="thread"))
    assert not slots.take_now(Demand("b", exclusive="machine", pool="thread"))
    assert slots.take_now(Demand("c", pool="thread"))
    assert not slots.take_now(Demand("d", pool="thread"))
    assert slots.take_now(Demand("d"))


@pytest.mark.parametrize("seed", range(20))
async def test_limits_hold_and_everybody_comes_to_run(seed: int) -> None:
    draw = random.Random(seed)
    slots, running = Slots(threads=5), list[Demand]()
    kinds = [
        Demand("a", 2, None, "thread"), Demand("b", 1, "x", "thread"), Demand("c", 3, "x", "thread"),
        Demand("d", None, "y"), Demand("e", None, "y", "thread"), Demand("f", 1),
    ]  # fmt: skip
    done = 0

    async def one(owner: str, demand: Demand) -> None:
        nonlocal done
        await slots.take(demand, owner)
        running.append(demand)
        names = Counter(one.name for one in running)
        assert all(one.max_running is None or names[one.name] <= one.max_running for one in running)
        groups = Counter(one.exclusive for one in running if one.exclusive)
        assert all(count == 1 for count in groups.values())
        assert sum(one.pool is not None for one in running) <= 5
        try:
            await asyncio.sleep(draw.choice([0, 0, 0.001]))
        finally:
            running.remove(demand)
            slots.give(demand)
        done += 1

    tasks = [asyncio.create_task(one(draw.choice("pqr"), draw.choice(kinds))) for _ in range(200)]
    await asyncio.sleep(0)
    gone = draw.sample(tasks, 50)
    for task in gone[:25]:
        task.cancel()
    await asyncio.sleep(0.002)
    for task in gone[25:]:
        task.cancel()
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in ended), ended
    assert slots.waiting == 0
    assert done >= 150
    assert slots._free["thread"] == 5
    assert not slots._exclusive
    assert not slots._running
