"""Agents of many principals look for one another's secrets; they find none, and find them once a check is gone."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from aios_evals.siege.canaries import Siege, siege
from aios_evals.siege.queries import ATTACKS
from aios_evals.siege.world import quick
from aios_kernel import notes
from aios_kernel.access import AccessManager, Decision
from aios_kernel.memory import manager as memory_manager
from aios_kernel.memory.index import Space
from aios_kernel.process import ProcessTable, Program
from aios_kernel.server.runtime import running_kernel
from aios_kernel.storage.sqlite import SqliteStorage


async def besiege(home: Path, results: int, principals: int) -> Siege:
    async with running_kernel(quick(home)) as kernel:
        return await siege(kernel, results, principals)


async def test_no_result_has_a_foreign_canary(tmp_path: Path) -> None:
    outcome = await besiege(tmp_path, 6_000, 10)
    rows = {row["attack"]: row for row in outcome.rows()}
    assert set(rows) == {*ATTACKS, "programs", "granted", "revoked", "total"}
    assert rows["total"]["results"] >= 6_000
    assert rows["total"]["foreign_canaries"] == 0, outcome.leaks
    assert outcome.lost == outcome.broken == 0
    assert outcome.granted > 10  # what was granted was found: the search for canaries is not blind
    assert 0.2 < rows["total"]["refused"] / rows["total"]["results"] < 0.9


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_thousand_agents_find_nothing(tmp_path: Path) -> None:
    """A hundred thousand results; the million is `make attack`'s."""
    outcome = await besiege(tmp_path, 100_000, 100)
    total = outcome.rows()[-1]
    assert total["results"] >= 100_000
    assert total["foreign_canaries"] == 0, outcome.leaks
    assert outcome.lost == outcome.broken == 0


def without_access(patch: pytest.MonkeyPatch) -> None:
    def decide(self: Any, *args: Any, **options: Any) -> Decision:
        return Decision("allow", "the check is gone")

    patch.setattr(AccessManager, "decide", decide)


def without_revoking(patch: pytest.MonkeyPatch) -> None:
    async def take_back(self: Any, *args: Any, **options: Any) -> None:
        return None

    patch.setattr(AccessManager, "take_back", take_back)


def without_owners_of_programs(patch: pytest.MonkeyPatch) -> None:
    def alive(self: ProcessTable, program_id: str, principal: str) -> Program:
        program = self.known(program_id)
        assert program is not None
        return program

    patch.setattr(ProcessTable, "alive", alive)


def without_principals_in_memory(patch: pytest.MonkeyPatch) -> None:
    def check_space(principal: str, namespace: str) -> Space:
        return Space("everybody", namespace)

    patch.setattr(memory_manager, "check_space", check_space)


def without_runs_in_logs(patch: pytest.MonkeyPatch) -> None:
    def owner(program: Program, run: str | None = None) -> tuple[str, str, str]:
        known = run if run and run.startswith("run-") else program.id
        return f"principal{known.split('-')[1]}", f"agent{known.split('-')[2]}", known

    patch.setattr(notes, "_owner", owner)


def without_principals_in_storage(patch: pytest.MonkeyPatch) -> None:
    get = SqliteStorage.get

    async def everybodys(self: Any, principal: str, owner: str, path: str, version: int | None = None) -> Any:
        return await get(self, "principal0", owner, path, version)

    patch.setattr(SqliteStorage, "get", everybodys)


@pytest.fixture(
    params=[
        without_access, without_revoking, without_owners_of_programs, without_principals_in_memory,
        without_runs_in_logs, without_principals_in_storage,
    ]
)  # fmt: skip
def mutated(request: pytest.FixtureRequest) -> Generator[None, None, None]:
    with pytest.MonkeyPatch.context() as patch:
        request.param(patch)
        yield


@pytest.mark.usefixtures("mutated")
async def test_a_kernel_with_a_check_taken_out_is_found_out(tmp_path: Path) -> None:
    outcome = await besiege(tmp_path, 2_000, 3)
    assert outcome.rows()[-1]["foreign_canaries"] > 0
