"""The fair policy: shares, the bound on their difference, no credit for idle times, no idling."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_kernel.errors import ConfigError
from aios_kernel.scheduler.fair import Fair
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.scheduler.protocol import Options
from aios_kernel.scheduler.rehearsal import Call, Pool

INPUT, OUTPUT = 1.0, 2.0


def service(here: Pool, agent: str) -> float:
    prompt, generated = here.served.get(agent, (0, 0))
    return INPUT * prompt + OUTPUT * generated


def keep_busy(here: Pool, agent: str, chance: random.Random, sizes: tuple[int, int], waiting: int = 4) -> None:
    """Have calls of an agent waiting all the time."""
    while sum(task.agent == agent and not task.generated for task in here.tasks.values()) < waiting:
        here.submit(Call(chance.randint(1, sizes[0]), chance.randint(1, sizes[1]), agent=agent))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    sizes=st.tuples(*[st.tuples(st.integers(1, 200), st.integers(1, 60))] * 2),
    weight=st.sampled_from([1.0, 2.0, 5.0]),
    can_swap=st.booleans(),
    batch=st.integers(1, 12),
)
def test_the_service_of_two_backlogged_clients_differs_by_no_more_than_the_bound(
    seed: int, sizes: tuple[tuple[int, int], tuple[int, int]], weight: float, can_swap: bool, batch: int
) -> None:
    """VTC, theorem 4.4: over any interval at most 2 * max(input cost * longest prompt, output cost * pool)."""
    chance = random.Random(seed)
    options: Options = {"weight.heavy": weight, "quantum": 64}
    here = Pool(Fair(options), kv_tokens=1024, max_batch=batch, max_step_tokens=128, can_swap=can_swap)
    bound = 2 * max(INPUT * max(size[0] for size in sizes), OUTPUT * here.kv_tokens)
    low = high = 0.0
    for _ in range(400):
        keep_busy(here, "heavy", chance, sizes[0], waiting=12)
        keep_busy(here, "light", chance, sizes[1], waiting=12)
        here.step()
        gap = service(here, "heavy") / weight - service(here, "light")
        low, high = min(low, gap), max(high, gap)
    assert high - low <= bound


def test_weights_are_shares() -> None:
    here = Pool(Fair({"weight.heavy": 3, "quantum": 64}))
    chance = random.Random(1)
    for _ in range(3000):
        keep_busy(here, "heavy", chance, (100, 40), waiting=12)
        keep_busy(here, "light", chance, (100, 40), waiting=12)
        here.step()
    assert service(here, "heavy") / service(here, "light") == pytest.approx(3, rel=0.05)


def test_an_idle_time_is_no_credit() -> None:
    """Who comes late is served at once, yet gets no more than its share from then on."""
    here = Pool(Fair({"quantum": 64}))
    chance = random.Random(2)
    for _ in range(500):
        keep_busy(here, "early", chance, (100, 40), waiting=12)
        here.step()
    before = service(here, "early")
    for _ in range(500):
        keep_busy(here, "early", chance, (100, 40), waiting=12)
        keep_busy(here, "late", chance, (100, 40), waiting=12)
        here.step()
    assert service(here, "late") == pytest.approx(service(here, "early") - before, rel=0.2)


def test_a_small_call_passes_a_flood() -> None:
    here = Pool(Fair({"quantum": 64}))
    for _ in range(200):
        here.submit(Call(100, 40, agent="flood"))
    for _ in range(50):
        here.step()
    asked, began = here.submit(Call(60, 10, agent="meek")), here.steps
    while asked not in here.ended:
        here.step()
    assert here.ended[asked] - began <= 20


def test_who_is_alone_gets_everything() -> None:
    one, fifo = Pool(Fair({})), Pool(Fifo({}))
    for here in (one, fifo):
        for _ in range(40):
            here.submit(Call(100, 20))
        here.run(5000)
    assert one.ended == fifo.ended


@pytest.mark.parametrize(
    "options", [{"client": "nobody"}, {"input_cost": -1}, {"weight.a": 0}, {"wait": 1}, {"quantum": "x"}]
)
def test_impossible_options_are_refused(options: Options) -> None:
    with pytest.raises(ConfigError):
        Fair(options)
