"""Contexts that are swapped out: budgets of host memory and disk, exact answers, and what happens when either fails."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from aios_kernel.config import Config
from aios_kernel.context.space import SwapSpace, swap_space
from aios_kernel.errors import Cancelled, OutOfMemory, SnapshotError
from aios_kernel.syscalls import LlmResult

SMALL = 2 << 20
"""Host memory for fewer contexts than are swapped out at a time, so that the disk is needed."""
PLENTY = 1 << 30


def wait_for_the_disk(tiers: Any) -> None:
    """However slow the disk is, snapshots get there before the next step."""
    settle = tiers.settle

    def written() -> None:
        wait([write.done for write in tiers._writes.values()])
        settle()

    tiers.settle = written


@pytest.fixture
def expected(make_run: Any, questions: Any) -> list[str]:
    return [result.text for result in make_run().serve(questions(6))]


def test_answers_are_the_same_through_the_disk(make_run: Any, questions: Any, expected: Any, folder: Path) -> None:
    run = make_run(SwapSpace(SMALL, PLENTY, folder))
    assert [result.text for result in run.serve(questions(6))] == expected
    assert run.most_on_disk > 0
    assert run.dispatcher.contexts.snapshots > 6
    assert run.dispatcher.contexts.tiers.host_bytes == 0
    assert not folder.exists()


def test_files_are_private_and_of_this_life_only(make_run: Any, questions: Any, folder: Path) -> None:
    folder.mkdir()
    left = {"left.safetensors", ".half.safetensors.77"}
    for name in left:
        (folder / name).write_bytes(b"of a kernel that was killed")
    seen: dict[str, int] = {}
    run = make_run(SwapSpace(SMALL, PLENTY, folder))
    wait_for_the_disk(run.dispatcher.contexts.tiers)
    run.until(lambda: not left & set(os.listdir(folder)))
    deliver = run._deliver

    def watch(updates: Any) -> None:
        for path in folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                seen[path.name] = stat.S_IMODE(path.stat().st_mode)
        deliver(updates)

    run.dispatcher._deliver = watch
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(isinstance(result, LlmResult) for result in run.serve(questions(6)))
    assert seen
    assert set(seen.values()) == {0o600}
    assert not folder.exists()


@pytest.mark.parametrize("disk_bytes", [0, 1 << 20])
def test_the_disk_has_a_budget(make_run: Any, questions: Any, expected: Any, folder: Path, disk_bytes: int) -> None:
    run = make_run(SwapSpace(PLENTY, disk_bytes, folder))
    assert [result.text for result in run.serve(questions(6))] == expected
    assert run.most_on_disk <= disk_bytes


def test_a_full_swap_space_ends_nobody_who_fits_the_pool(make_run: Any, questions: Any, expected: Any) -> None:
    run = make_run(SwapSpace(host_bytes=1))
    assert [result.text for result in run.serve(questions(6))] == expected


def test_a_full_swap_space_and_a_full_pool_end_some_with_a_typed_error(make_run: Any, questions: Any) -> None:
    run = make_run(SwapSpace(host_bytes=0), kv_tokens=320)
    results = run.serve(questions(6))
    for result in results:
        assert isinstance(result, LlmResult | OutOfMemory)
    assert any(isinstance(result, LlmResult) for result in results)


def test_a_full_disk_costs_nobody_an_answer(
    make_run: Any, questions: Any, expected: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    run = make_run(SwapSpace(SMALL, PLENTY, folder))
    wait_for_the_disk(run.dispatcher.contexts.tiers)
    assert [result.text for result in run.serve(questions(6))] == expected
    assert run.dispatcher.contexts.tiers.disk_bytes == 0


def test_a_folder_that_cannot_be_made_costs_nobody_an_answer(
    make_run: Any, questions: Any, expected: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    run = make_run(SwapSpace(SMALL, PLENTY, tmp_path / "file" / "swap"))
    assert [result.text for result in run.serve(questions(6))] == expected


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: os.truncate(path, 5000)], ids=["vanished", "cut short"])
def test_a_spoilt_file_costs_its_own_call_only(
    make_run: Any, questions: Any, expected: Any, folder: Path, harm: Callable[[Path], object]
) -> None:
    run = make_run(SwapSpace(SMALL, PLENTY, folder))
    tiers = run.dispatcher.contexts.tiers
    spoilt: list[bool] = []
    bring = tiers.bring
    wait_for_the_disk(tiers)

    def spoil(held: Any) -> Any:
        if not spoilt and held.stored is not None and held.fetching is None:
            harm(held.stored.path)
            spoilt.append(True)
        return bring(held)

    tiers.bring = spoil
    results = run.serve(questions(6))
    failed = [number for number, result in enumerate(results) if isinstance(result, SnapshotError)]
    assert len(failed) == len(spoilt) == 1
    assert "cannot be read" in str(results[failed[0]])
    for number, (result, text) in enumerate(zip(results, expected, strict=True)):
        assert number in failed or result.text == text
    assert tiers.host_bytes == 0


def test_calls_cancelled_in_every_place_leave_nothing_behind(make_run: Any, questions: Any, folder: Path) -> None:
    run = make_run(SwapSpace(SMALL, PLENTY, folder))
    run.dispatcher.start()
    asked = [run.ask(call) for call in questions(8)]
    run.until(lambda: run.dispatcher.contexts.tiers.disk_bytes > 0)
    for generation in asked:
        run.dispatcher.cancel(generation, Cancelled("the test has seen enough"))
    results = run.wait(asked)
    assert all(isinstance(result, LlmResult | Cancelled) for result in results)
    assert any(isinstance(result, Cancelled) for result in results)
    fresh = run.wait([run.ask(questions(1)[0])])
    assert isinstance(fresh[0], LlmResult)
    free, total = run.model.engine.kv_free(), run.model.engine.capabilities.kv_tokens
    tiers = run.dispatcher.contexts.tiers
    run.dispatcher.stop()
    assert free == total
    assert tiers.host_bytes == 0
    assert not folder.exists()


def test_budgets_come_from_the_configuration(tmp_path: Path) -> None:
    space = swap_space(Config(home=str(tmp_path)))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert space == SwapSpace(memory // 4, 4 << 30, tmp_path / "swap")
    none = swap_space(Config(home=str(tmp_path), kv_host_bytes=5, kv_disk_bytes=0))
    assert none == SwapSpace(5, 0, None)
