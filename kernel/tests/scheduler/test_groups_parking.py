"""Parked contexts of groups: each policy decides on its own group's, and none of them bars another group's way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from aios_kernel.engine.fake import fake_model
from aios_kernel.errors import Cancelled
from aios_kernel.plugins import Plugins
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.scheduler.groups import Groups
from aios_kernel.scheduler.limits import Limited, Meters
from aios_kernel.scheduler.protocol import Parked, Plan, Residency, View
from aios_kernel.scheduler.settings import Limits

POLICIES = Plugins().named("aios_kernel_policies")


class Keeper(Fifo):
    """Fifo that keeps whatever is parked, and notes what it sees of it."""

    name = "keeper"
    parks = True

    def __init__(self) -> None:
        super().__init__({})
        self.seen: set[str] = set()
        self.stow: list[str] = []

    def decide(self, view: View, now_s: float) -> Plan:
        self.seen |= {parked.program for parked in view.parked}
        plan = super().decide(view, now_s)
        plan.stow, self.stow = self.stow, []
        return plan


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def life(make_life: Any, keeper: Keeper) -> Iterator[Any]:
    groups = Groups(Fifo({}), {"agents": (keeper, 1.0), "others": (Fifo({}), 1.0)})
    life = make_life(fake_model(kv_tokens=512, max_batch=4), Limited(groups, Meters(Limits())))
    life.groups |= {"p": "agents", "q": "agents", "x": "others", "y": ""}
    yield life
    life.close()


def parked(life: Any) -> dict[str, Residency]:
    life.settle()
    return {row.program: row.residency for row in life.dispatcher.contexts.parking.rows}


def test_each_policy_sees_what_its_own_group_has_parked(life: Any, keeper: Keeper) -> None:
    for program in ("p", "x", "y"):
        life.turn(program, "say yes")
    life.turn("q", "say yes")
    life.settle()
    assert parked(life) == {"p": Residency.RESIDENT, "q": Residency.RESIDENT}
    assert keeper.seen == {"p", "q"}


def test_moves_of_a_groups_policy_are_carried_out_while_it_has_no_calls(life: Any, keeper: Keeper) -> None:
    life.turn("p", "say yes")
    keeper.stow = ["p"]
    assert parked(life) == {"p": Residency.SWAPPED}
    life.turn("p", "say no")
    assert parked(life) == {"p": Residency.RESIDENT}


def test_what_only_lies_in_the_pool_gives_way_to_another_group(life: Any, keeper: Keeper) -> None:
    life.turn("p", "word " * 150)
    life.turn("q", "word " * 150)
    assert parked(life) == {"p": Residency.RESIDENT, "q": Residency.RESIDENT}
    steady = life.ask("p", "ponder", tokens=400)  # somebody runs meanwhile: nothing is stuck
    assert life.turn("x", "word " * 300)
    assert steady.generated < 150  # until it would need the room itself
    life.dispatcher.cancel(steady, Cancelled("enough"))
    life.wait([steady])


def view_of(parked: list[Parked], **changed: Any) -> View:
    view = View([], 512, 512, 16, 4, 512, True, parked=parked, host_free=1 << 20)
    return dataclasses.replace(view, **changed)


def row(program: str, group: str, length: int = 64) -> Parked:
    return Parked(program, group, "normal", Residency.RESIDENT, length, 0.0)


def test_the_program_policy_parks_in_a_group() -> None:
    groups = Groups(Fifo({}), {"agents": (POLICIES["program"]({}), 1.0)})
    assert groups.parks
    assert not Groups(Fifo({}), {"agents": (Fifo({}), 1.0)}).parks
    plan = groups.decide(view_of([row("p", "agents"), row("x", "others")]), 0.0)
    assert plan.drop == ["x"]
    assert "p" not in plan.drop
