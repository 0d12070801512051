"""The interaction log of a program: within its budget, complete, and gone or kept at the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aios_kernel.errors import InvalidRequest, NotFound
from aios_kernel.memory import ExactIndex, HashEmbedder, MemoryManager
from aios_kernel.memory.short_term import ShortTerm

ME = ("u", "alice", "p1")
OTHER = ("u", "alice", "p2")


def open_memory(home: Path, budget: int = 10_000) -> MemoryManager:
    return MemoryManager(home, HashEmbedder(), lambda model: ExactIndex(), log_bytes=budget)


async def read(log: ShortTerm, first: int = 1, last: int | None = None) -> list[str]:
    return [one.text for one in await log.recall(ME, first, last)]


async def moved(memory: MemoryManager) -> set[int]:
    """The numbers that are not in RAM."""
    log = memory.short_term._logs[ME]
    return set(range(1, log.count + 1)) - set(log.here)


async def test_a_log_is_complete_and_within_its_budget(tmp_path: Path) -> None:
    memory = open_memory(tmp_path)
    texts = [f"{n} " + "x" * (n % 7 * 100) for n in range(300)]
    for n, text in enumerate(texts, 1):
        made = await memory.short_term.record(ME, "user", text)
        assert (made.number, made.role, made.text) == (n, "user", text)
        assert memory.short_term.sizes()[0] <= 10_000
    assert len(await moved(memory)) > 250
    assert await read(memory.short_term) == texts
    assert memory.short_term.sizes()[0] <= 10_000
    assert await read(memory.short_term, 5, 9) == texts[4:9]
    assert await read(memory.short_term, -3) == texts[-3:]
    assert await read(memory.short_term, -5, -4) == texts[-5:-3]
    assert await read(memory.short_term, 301) == await read(memory.short_term, 9, 5) == []
    await memory.close()


async def test_what_was_used_twice_lately_stays(tmp_path: Path) -> None:
    memory = open_memory(tmp_path, 3_000)
    for n in range(1, 11):
        await memory.short_term.record(ME, "", f"text {n}")
    for _ in range(2):
        await memory.short_term.recall(ME, 2, 3)
    for n in range(30):  # a scan: each is used once only, and so does not drive out what is used again and again
        await memory.short_term.record(ME, "", f"scanned {n}")
    gone = await moved(memory)
    assert not gone & {2, 3}
    assert {1, 4, 5, 11, 12} <= gone
    assert await read(memory.short_term, 1, 1) == ["text 1"]
    assert 1 not in await moved(memory)
    await memory.close()


async def test_a_log_goes_with_its_program_or_is_kept(tmp_path: Path) -> None:
    memory = open_memory(tmp_path, 1_000)
    for owner in (ME, OTHER):
        for n in range(20):
            await memory.short_term.record(owner, "user", f"text {n}")
    await memory.short_term.keep(OTHER)
    await memory.short_term.record(OTHER, "user", "last words")
    for owner in (ME, OTHER):
        memory.end_program(*owner)
    await asyncio.gather(*memory._ending)
    assert memory.short_term.sizes() == (0, 0)
    with pytest.raises(NotFound, match="has no log"):
        await memory.short_term.recall(ME, 1, None)
    for _ in range(2):
        kept = await memory.short_term.recall(OTHER, -2, None)
        assert [(one.number, one.text) for one in kept] == [(20, "text 19"), (21, "last words")]
        await memory.close()
        memory = open_memory(tmp_path)
    await memory.close()


async def test_a_kernel_that_died_leaves_only_kept_logs(tmp_path: Path) -> None:
    memory = open_memory(tmp_path, 1_000)
    await memory.short_term.keep(OTHER)
    for owner in (ME, OTHER):
        for n in range(20):
            await memory.short_term.record(owner, "user", f"text {n}")
    await memory.close()  # without an end of the programs
    again = open_memory(tmp_path)
    with pytest.raises(NotFound):
        await again.short_term.recall(ME, 1, None)
    assert len(await again.short_term.recall(OTHER, 1, None)) == 20
    await again.close()


async def test_bad_entries_are_refused(tmp_path: Path) -> None:
    memory = open_memory(tmp_path, 1_000)
    for role, text in (("x" * 101, "y"), ("\ud800", "y"), ("x", "\ud800"), ("x", "y" * 1_000)):
        with pytest.raises(InvalidRequest):
            await memory.short_term.record(ME, role, text)
    await memory.close()


async def test_calls_at_once_keep_the_order_of_numbers(tmp_path: Path) -> None:
    memory = open_memory(tmp_path, 1_000)
    made = await asyncio.gather(
        *(memory.short_term.record(ME, "", str(n)) for n in range(50)), memory.short_term.recall(ME, 1, None)
    )
    assert [one.number for one in made[:-1]] == list(range(1, 51))
    assert [one.number for one in await memory.short_term.recall(ME, 1, None)] == list(range(1, 51))
    await memory.close()
