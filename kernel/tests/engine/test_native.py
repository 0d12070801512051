"""The compiled attention against plain attention over the same contexts, and the ways to do without it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aios_kernel.engine.torch.kv import LayerShape
from aios_kernel.engine.torch.native import build
from aios_kernel.engine.torch.native.memory import NativeKvMemory, Scoring, served
from aios_kernel.engine.torch.native.plan import plan
from aios_kernel.engine.torch.prefix import BLOCK

CPU = torch.device("cpu")
N_BLOCKS = 64
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    if not served(torch.float32, CPU):
        pytest.skip("no C++ compiler here")


class Side:
    """One context: its block table, how many tokens are stored, how many more come."""

    def __init__(self, table: list[int], stored: int, new: int) -> None:
        self.table = np.array(table[: -(-(stored + new) // BLOCK)], dtype=np.int64)
        self.positions = np.arange(stored, stored + new)
        self.slots = self.table[self.positions // BLOCK] * BLOCK + self.positions % BLOCK


@st.composite
def batches(draw: st.DrawFn) -> list[Side]:
    """Contexts on blocks in random order; several that decode begin with the same blocks."""
    numbers = list(range(1, N_BLOCKS))
    random.Random(draw(st.integers(0, 999))).shuffle(numbers)
    prefix = [numbers.pop() for _ in range(draw(st.integers(0, 10)))]
    singles: list[Side] = []
    for _ in range(draw(st.integers(0, 4))):
        begin = prefix if draw(st.booleans()) else []
        stored = len(begin) * BLOCK + draw(st.integers(0, 40))
        own = [numbers.pop() for _ in range(4)]
        singles.append(Side([*begin, *own], stored, 1))
    singles.sort(key=lambda side: int(side.table[0]))
    chunks = [
        Side([numbers.pop() for _ in range(8)], draw(st.integers(0, 60)), draw(st.integers(2, 60)))
        for _ in range(draw(st.integers(0 if singles else 1, 2)))
    ]
    return [*singles, *chunks]


@settings(max_examples=150, deadline=None)
@given(
    sides=batches(),
    heads=st.sampled_from([(1, 1), (2, 1), (6, 2), (5, 5)]),
    dims=st.sampled_from([(16, 16), (64, 64), (12, 12), (80, 80), (7, 33)]),
    window=st.sampled_from([None, 1, 20, 64]),
    softcap=st.sampled_from([None, 5.0]),
    dtype=st.sampled_from(list(TOLERANCES)),
    threads=st.sampled_from([1, 2]),
)
def test_attends_as_plain_attention_does(
    sides: list[Side], heads: tuple[int, int], dims: tuple[int, int], window: int | None, softcap: float | None,
    dtype: torch.dtype, threads: int,
) -> None:  # fmt: skip
    torch.manual_seed(1)
    (n_heads, kv_heads), (key_dim, value_dim) = heads, dims
    memory = NativeKvMemory([LayerShape(kv_heads, key_dim, value_dim)], N_BLOCKS, dtype=dtype, device=CPU)
    everything = np.arange(N_BLOCKS * BLOCK)
    keys = torch.randn(1, kv_heads, len(everything), key_dim, dtype=dtype)
    values = torch.randn(1, kv_heads, len(everything), value_dim, dtype=dtype)
    query = torch.randn(1, n_heads, sum(len(side.slots) for side in sides), key_dim, dtype=dtype)
    scoring = Scoring(0.3, window, softcap)
    filled = plan([], [(len(everything), everything[:N_BLOCKS])], everything, everything)
    slots = np.concatenate([side.slots for side in sides])
    # What stands where the new tokens go must not matter.
    before, others = keys.clone(), values.clone()
    before[:, :, slots], others[:, :, slots] = 9.0, 9.0
    memory.attend(0, filled, keys[:, :1].expand(-1, n_heads, -1, -1), before, others, scoring)
    singles = [side.table for side in sides if len(side.slots) == 1]
    chunks = [(len(side.slots), side.table) for side in sides if len(side.slots) > 1]
    laid_out = plan(singles, chunks, slots, np.concatenate([side.positions for side in sides]))
    torch.set_num_threads(threads)
    try:
        out = memory.attend(0, laid_out, query, keys[:, :, slots], values[:, :, slots], scoring)
    finally:
        torch.set_num_threads(1)
    row = 0
    for side in sides:
        rows = slice(row, row + len(side.slots))
        expected = reference(side, query[0, :, rows], keys[0], values[0], *scoring)
        torch.testing.assert_close(out[0, rows].float(), expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
        row += len(side.slots)


def reference(
    side: Side, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """The definition: [rows, heads, dim] in float32."""
    past = np.arange(side.positions[-1] + 1)
    slots = side.table[past // BLOCK] * BLOCK + past % BLOCK
    group = len(query) // len(keys)
    key, value = (x[:, slots].float().repeat_interleave(group, dim=0) for x in (keys, values))
    scores = query.float() @ key.transpose(1, 2) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    behind = torch.from_numpy(side.positions)[:, None] - torch.from_numpy(past)
    hidden = (behind < 0) | (behind >= (window or 1 << 30))
    return (scores.masked_fill(hidden, float("-inf")).softmax(dim=-1) @ value).transpose(0, 1)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_a_broken_number_is_not_lost(dtype: torch.dtype) -> None:
    memory = NativeKvMemory([LayerShape(1, 16, 16)], 4, dtype=dtype, device=CPU)
    x = torch.ones(1, 1, 2, 16, dtype=dtype)
    x[0, 0, 0, 3] = float("nan")
    where = np.array([BLOCK, BLOCK + 1])
    out = memory.attend(0, plan([], [(2, np.array([1]))], where, where - BLOCK), x, x, x, Scoring(1.0))
    assert out.isnan().any(dim=-1).all()


def test_rows_that_begin_alike_share_their_prefix() -> None:
    tables = [np.array(table) for table in ([5, 6, 7], [5, 6, 8], [9], [5, 6])]
    laid_out = plan([tables[0], tables[1], tables[3], tables[2]], [(4, np.array([3, 4]))], *[np.arange(8)] * 2)
    assert laid_out.units.tolist() == [[0, 3, 2], [3, 4, 1], [4, 8, 2]]
    assert laid_out.tables[laid_out.offsets].tolist() == [5, 5, 5, 9, 3, 3, 3, 3]


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _name: None)  # pyright: ignore[reportUnknownLambdaType]
    assert build.library.__wrapped__() is None


def test_a_compiler_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _name: "/bin/false")  # pyright: ignore[reportUnknownLambdaType]
    assert build.library.__wrapped__() is None
    assert not list((tmp_path / "aios" / "native").iterdir())


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.OFF, "0")
    assert build.library.__wrapped__() is None
