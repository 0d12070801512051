"""Parked contexts: shown to the policy, stowed, fetched, dropped and used up as it says, and never in anybody's way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aios_kernel.context.space import SwapSpace
from aios_kernel.engine.fake import fake_model
from aios_kernel.engine.load import load_model
from aios_kernel.process import Program
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.scheduler.protocol import Parked, Plan, Residency, View
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling


class Scripted(Fifo):
    """Fifo that parks everything and moves what it was told to."""

    name = "scripted"
    parks = True

    def __init__(self) -> None:
        super().__init__({})
        self.views: list[View] = []
        self.orders: list[tuple[str, str]] = []

    def decide(self, view: View, now_s: float) -> Plan:
        self.views.append(dataclasses.replace(view, tasks=[*view.tasks], parked=[*view.parked]))
        plan = super().decide(view, now_s)
        orders, self.orders = self.orders, []
        for verb, program in orders:
            getattr(plan, verb).append(program)
        return plan


class Scene:
    """A life under a scripted policy."""

    def __init__(self, life: Any, policy: Scripted) -> None:
        self.life = life
        self.policy = policy

    @property
    def parked(self) -> list[Parked]:
        self.life.settle()
        return [*self.life.dispatcher.contexts.parking.rows]

    @property
    def free(self) -> int:
        return self.life.model.engine.kv_free()

    def order(self, verb: str, program: str) -> None:
        self.policy.orders.append((verb, program))
        self.life.settle()

    def until(self, residency: Residency) -> None:
        """Wait for the only parked context to be there; the dispatcher is woken by the orders of `settle`."""
        for _ in range(10_000):
            if self.parked and self.parked[0].residency is residency:
                return
        raise AssertionError(self.parked)


@pytest.fixture
def scene(make_life: Any, tmp_path: Path) -> Iterator[Scene]:
    torch.set_num_threads(1)
    policy = Scripted()
    life = make_life(load_model("demo", device="cpu", kv_tokens=1024), policy, SwapSpace(1 << 30, 0, None))
    yield Scene(life, policy)
    life.close()


def test_a_call_that_ended_well_is_parked_until_its_programs_next_one(scene: Scene) -> None:
    scene.life.turn("p", "think about rivers")
    (parked,) = scene.parked
    total = scene.life.model.engine.capabilities.kv_tokens
    assert (parked.program, parked.group, parked.residency) == ("p", "g", Residency.RESIDENT)
    assert scene.free == total - -(-parked.length // 16) * 16
    scene.policy.views.clear()
    second = scene.life.ask("p", "and about stones")
    scene.life.hear("p", second)
    arrived = next(view.tasks[0] for view in scene.policy.views if view.tasks)
    assert arrived.length - arrived.pending == parked.length
    assert second.cached == arrived.length - arrived.pending
    assert [row.length > parked.length for row in scene.parked] == [True]


def test_what_is_stowed_takes_no_pool_and_comes_back(scene: Scene) -> None:
    scene.life.turn("p", "think about rivers")
    (before,) = scene.parked
    scene.order("stow", "p")
    tiers = scene.life.dispatcher.contexts.tiers
    assert [row.residency for row in scene.parked] == [Residency.SWAPPED]
    assert scene.free == 1024
    assert tiers.host_bytes > 0
    scene.order("fetch", "p")
    assert scene.parked == [before]
    assert tiers.host_bytes == 0
    computed = scene.life.dispatcher.tokens_computed
    second = scene.life.ask("p", "and about stones")
    scene.life.hear("p", second)
    assert second.cached == before.length
    assert scene.life.dispatcher.tokens_computed - computed == second.computed


def test_a_stowed_context_whose_blocks_are_gone_saves_the_prefill(scene: Scene) -> None:
    scene.life.turn("p", "think about rivers")
    (before,) = scene.parked
    scene.order("stow", "p")
    scene.life.turn("q", "word " * 190)  # its prompt takes the whole pool
    scene.order("drop", "q")
    scene.order("fetch", "p")
    scene.life.settle()
    second = scene.life.ask("p", "and about stones")
    scene.life.hear("p", second)
    assert second.cached == before.length


def test_through_the_disk(make_life: Any, tmp_path: Path) -> None:
    policy = Scripted()
    life = make_life(load_model("demo", device="cpu", kv_tokens=1024), policy, SwapSpace(1, 1 << 30, tmp_path / "kv"))
    scene = Scene(life, policy)
    life.turn("p", "think about rivers")
    (before,) = scene.parked
    scene.order("stow", "p")
    tiers = life.dispatcher.contexts.tiers
    while tiers.host_bytes:
        life.settle()
    assert tiers.disk_bytes > 0
    scene.order("fetch", "p")  # asked once; it arrives by itself
    scene.until(Residency.RESIDENT)
    assert scene.parked == [before]
    assert tiers.disk_bytes == 0
    second = life.ask("p", "and about stones")
    life.hear("p", second)
    assert second.cached == before.length
    life.close()


def test_a_spoilt_file_costs_a_prefill_only(make_life: Any, tmp_path: Path) -> None:
    policy = Scripted()
    life = make_life(load_model("demo", device="cpu", kv_tokens=1024), policy, SwapSpace(1, 1 << 30, tmp_path / "kv"))
    scene = Scene(life, policy)
    life.turn("p", "think about rivers")
    scene.order("stow", "p")
    while life.dispatcher.contexts.tiers.host_bytes:
        life.settle()
    for path in (tmp_path / "kv").glob("*.safetensors"):
        path.unlink()
    scene.order("fetch", "p")
    while life.dispatcher.contexts.parking:
        life.settle()
    life.turn("p", "and about stones")
    life.close()


def test_dropped_contexts_stay_in_the_prefix_cache(scene: Scene) -> None:
    scene.life.turn("p", "think about rivers")
    (before,) = scene.parked
    scene.order("drop", "p")
    assert scene.parked == []
    assert scene.free == 1024
    second = scene.life.ask("p", "and about stones")
    scene.life.hear("p", second)
    assert second.cached == before.length


def test_several_answers_leave_one_context(scene: Scene) -> None:
    service, dispatcher = scene.life._service, scene.life.dispatcher
    call = LlmChat(messages=[Message(role="user", content="think")], sampling=Sampling(n=3, max_tokens=5))
    answers = service.prepare_all(dispatcher.next_id, call, Program(id="p", agent="a", principal="me", group="g"))
    for answer in answers:
        dispatcher.submit(answer)
    scene.life.wait(answers)
    assert len(scene.parked) == 1
    scene.life.leave("p")


def test_a_prompt_that_goes_elsewhere_shares_what_is_common(scene: Scene) -> None:
    scene.life.turn("p", "think about rivers and what they carry to the sea in spring")
    (parked,) = scene.parked
    scene.life._talks["p"].clear()
    scene.policy.views.clear()
    other = scene.life.ask("p", "something else")
    scene.life.hear("p", other)
    arrived = next(view.tasks[0] for view in scene.policy.views if view.tasks)
    assert arrived.length - arrived.pending == other.cached < parked.length


def test_what_is_shared_within_a_block_costs_no_further_step(scene: Scene) -> None:
    """The policy plans what it sees pending; the context takes the shared tokens on top of that."""
    scene.life.turn("p", "think about rivers and what they carry to the sea in spring")
    scene.life._talks["p"].clear()
    scene.policy.views.clear()
    other = scene.life.ask("p", "something else", 1)
    scene.life.hear("p", other)
    assert 0 < other.cached < len(other.order.prompt) - 1
    assert other.cached % scene.life.model.engine.capabilities.block_size
    assert len([view for view in scene.policy.views if view.tasks]) == 1


def test_a_program_that_ends_leaves_nothing_parked(scene: Scene) -> None:
    for program in ("p", "q"):
        scene.life.turn(program, "think about rivers")
    scene.order("stow", "q")
    for program in ("p", "q"):
        scene.life.leave(program)
    assert scene.parked == []
    assert scene.free == 1024
    assert scene.life.dispatcher.contexts.tiers.host_bytes == 0


def test_a_policy_that_does_not_park_gives_everything_up(scene: Scene) -> None:
    for program in ("p", "q"):
        scene.life.turn(program, "think about rivers")
    scene.order("stow", "q")
    scene.life.dispatcher.set_policy(Fifo({}))
    assert scene.parked == []
    assert scene.free == 1024
    scene.life.turn("p", "and stones")
    assert scene.parked == []


def test_failed_and_cancelled_calls_are_not_parked(scene: Scene) -> None:
    running = scene.life.ask("p", "think " * 20, 200)
    scene.life.cancel(running)
    scene.life.wait([running])
    assert scene.parked == []


@pytest.mark.parametrize("space", [None, SwapSpace(host_bytes=0)], ids=["host memory", "no host memory"])
def test_what_is_parked_gives_way_to_a_call_that_needs_the_pool(make_life: Any, space: SwapSpace | None) -> None:
    life = make_life(fake_model(kv_tokens=160), Scripted(), space)
    for number in range(9):
        life.turn(f"p{number}", "say yes")
    assert len(life.dispatcher.contexts.parking) > 1
    big = life.ask("q", "word " * 140, 5)
    life.wait([big])
    assert isinstance(big.ended, LlmResult)
    life.close()


def test_stowed_contexts_give_way_to_running_ones_that_must_be_swapped(make_life: Any) -> None:
    policy = Scripted()
    bound = SwapSpace(host_bytes=40_000)  # one parked context fills it
    life = make_life(load_model("demo", device="cpu", kv_tokens=256), policy, bound)
    life.turn("p", "think about rivers")
    policy.orders.append(("stow", "p"))
    life.settle()
    assert not life.dispatcher.contexts.can_swap
    asked = [life.ask(f"q{n}", f"think {n}", 120, seed=n) for n in range(3)]
    life.wait(asked)
    assert all(isinstance(generation.ended, LlmResult) for generation in asked), [g.ended for g in asked]
    life.close()


def test_an_engine_that_plans_its_own_steps_parks_nothing(make_life: Any) -> None:
    model = fake_model()
    model.engine.capabilities = dataclasses.replace(model.engine.capabilities, step_control=False)
    life = make_life(model, Scripted())
    life.turn("p", "say yes")
    assert len(life.dispatcher.contexts.parking) == 0
    life.close()


def test_an_engine_without_snapshots_stows_nothing(make_life: Any) -> None:
    policy = Scripted()
    model = fake_model()
    model.engine.capabilities = dataclasses.replace(model.engine.capabilities, snapshot=False)
    life = make_life(model, policy)
    scene = Scene(life, policy)
    life.turn("p", "say yes")
    assert policy.views[-1].host_free == 0
    scene.order("stow", "p")
    assert [row.residency for row in scene.parked] == [Residency.RESIDENT]
    life.close()
