"""Gathered copies: the bytes, how few copies there are, and the order in which a queue gets its work."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from aios_kernel.engine.torch.copies import DeviceCopies
from aios_kernel.engine.torch.host import HostMemory, tensors_in
from aios_kernel.engine.torch.kv import KvMemory, LayerShape
from aios_kernel.engine.torch.paged import staging
from aios_kernel.engine.torch.paged.staging import Stage
from aios_kernel.engine.torch.paged.streams import HostLane

CPU = torch.device("cpu")
BLOCKS = 40


class Watched(HostLane):
    """A queue that tells what it was given."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    def after(self, mark: Any) -> None:
        self.log.append(("after", mark))

    @contextmanager
    def running(self) -> Any:
        self.log.append("running")
        yield
        self.log.append("left")

    def wait(self) -> None:
        self.log.append("wait")


@pytest.fixture
def memory() -> KvMemory:
    torch.manual_seed(0)
    made = KvMemory([LayerShape(2, 8, 8), LayerShape(3, 4, 6)], BLOCKS, dtype=torch.float16, device=CPU)
    for pool in made.by_block():
        pool.copy_(torch.randn(pool.shape))
    return made


def host(memory: KvMemory, n_blocks: int) -> list[torch.Tensor]:
    shapes = memory.shapes(n_blocks)
    size = sum(torch.Size(shape).numel() for shape in shapes) * 2
    return tensors_in(HostMemory().take(size), shapes, torch.float16)


@pytest.mark.parametrize("nbytes", [1 << 20, 4096, 700, 1])
def test_blocks_go_out_and_come_back(memory: KvMemory, nbytes: int) -> None:
    blocks = random.Random(nbytes).sample(range(BLOCKS), 13)
    lane, data, gathered = Watched(), host(memory, 13), []
    stage = Stage(memory.by_block(), lane, nbytes)
    stage.out(data, blocks, "here", lambda: gathered.append(list(lane.log)))
    expected = [part.clone() for part in memory.read(blocks)]
    for part, whole in zip(data, expected, strict=True):
        assert torch.equal(part, whole)
    assert gathered == [[("after", "here"), "running", "wait"]]  # the blocks are free before the last copy
    assert lane.log[-2:] == ["left", "wait"]
    rows, targets = [2, 3, 4, 9, 11, 12], [7, 1, 30, 22, 5, 39]
    before = [pool.clone() for pool in memory.by_block()]
    stage.back(data, targets, rows, "there")
    for pool, old, part in zip(memory.by_block(), before, data, strict=True):
        old[targets] = part[rows]
        assert torch.equal(pool, old)


def test_what_lies_together_is_one_copy(memory: KvMemory) -> None:
    stage = Stage(memory.by_block(), HostLane(), 1 << 20)
    (piece,) = stage._pieces(host(memory, 13))
    (run,) = staging._runs(piece)
    assert run.host.numel() == sum(torch.Size(shape).numel() for shape in memory.shapes(13))
    parts = [part[3:5] for part in host(memory, 13)]
    (piece,) = stage._pieces(parts)
    assert [run.begin for run in staging._runs(piece)] == [0, 1024, 2048, 2816]


def test_an_engine_swaps_over_them(make_engine: Any, drive: Any, oracles: Any, prompt: Any) -> None:
    """As on a device: both directions have a thread and a queue of their own, and nothing is copied at once."""
    engine = make_engine(kv_tokens=512)
    engine._swapper._copies = DeviceCopies(engine._memory)
    driver, lives = drive(engine), []
    for seed in range(6):
        context = driver.open(prompt(60, seed=seed))
        lives.append([prompt(60, seed=seed), context, driver.answer(context, 2)])
        lives[-1][1] = engine.snapshot(context)
    for said, snapshot, answer in lives:
        context = engine.restore(snapshot)
        oracles("llama").check(said, answer + driver.answer(context, 3))
        engine.release(context)
    assert engine.kv_free() == engine.capabilities.kv_tokens
    engine.close()
