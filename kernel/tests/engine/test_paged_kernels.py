"""The Triton kernels in Triton's interpreter, against the definition of attention, over random shapes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aios_kernel.engine.torch.kv import LayerShape
from aios_kernel.engine.torch.native.memory import Scoring
from aios_kernel.engine.torch.native.plan import plan
from aios_kernel.engine.torch.paged.memory import PagedKvMemory, served
from aios_kernel.engine.torch.paged.plan import Inputs, Sizes, Step, inputs_of, pack_step, padded
from aios_kernel.engine.torch.prefix import BLOCK

CPU = torch.device("cpu")
N_BLOCKS = 64
TOLERANCES = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}
pytestmark = pytest.mark.skipif(not served(CPU), reason="Triton's interpreter is not here")


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
    for _ in range(draw(st.integers(0, 5))):
        begin = prefix if draw(st.booleans()) else []
        stored = len(begin) * BLOCK + draw(st.integers(0, 40))
        singles.append(Side([*begin, *(numbers.pop() for _ in range(4))], stored, 1))
    singles.sort(key=lambda side: int(side.table[0]))
    chunks = [
        Side([numbers.pop() for _ in range(8)], draw(st.integers(0, 60)), draw(st.integers(2, 60)))
        for _ in range(draw(st.integers(0 if singles else 1, 2)))
    ]
    return [*singles, *chunks]


def packed_of(sides: list[Side], memory: PagedKvMemory, cascade: int) -> Any:
    singles = [side for side in sides if len(side.slots) == 1]
    chunks = [side for side in sides if len(side.slots) > 1]
    slots = np.concatenate([side.slots for side in sides])
    positions = np.concatenate([side.positions for side in sides])
    laid_out = plan(
        [side.table for side in singles], [(len(side.slots), side.table) for side in chunks], slots, positions
    )
    step = Step(np.zeros_like(slots), np.arange(len(slots)), len(singles), laid_out)
    return pack_step(step, memory.tiling, cascade_tokens=cascade)


def inputs_for(sides: list[Side], memory: PagedKvMemory, cascade: int) -> Inputs:
    packed = packed_of(sides, memory, cascade)
    return inputs_of(torch.from_numpy(packed.numbers), packed.sizes, memory.tiling, packed)


def filled(memory: PagedKvMemory, heads: int, dims: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A pool whose every slot holds something."""
    n = N_BLOCKS * BLOCK
    keys = torch.randn(1, heads, n, dims[0], dtype=dtype)
    values = torch.randn(1, heads, n, dims[1], dtype=dtype)
    memory.keys[0].copy_(keys[0].transpose(0, 1))
    memory.values[0].copy_(values[0].transpose(0, 1))
    return keys, values


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 12, 20), (8, 7, 33)])
def test_new_keys_and_values_go_to_their_slots(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    heads, key_dim, value_dim = shape
    memory = PagedKvMemory([LayerShape(*shape)], 6, dtype=dtype, device=CPU, heads=heads)
    slots = torch.tensor([70, -1, 17, 95, -1, 16])
    key = torch.randn(1, 6, heads, key_dim).to(dtype).transpose(1, 2)
    value = torch.randn(1, heads, 6, value_dim).to(dtype)
    memory.put(0, slots, key, value)
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            assert torch.equal(memory.keys[0][slot], key[0, :, row])
            assert torch.equal(memory.values[0][slot], value[0, :, row])
    assert int(memory.keys[0].any(dim=-1).any(dim=-1).sum()) == 4


@settings(max_examples=25, deadline=None)
@given(
    sides=batches(),
    heads=st.sampled_from([(1, 1), (2, 1), (6, 2), (7, 1), (5, 5), (24, 1)]),
    dims=st.sampled_from([(16, 16), (64, 64), (12, 12), (80, 80), (7, 33)]),
    window=st.sampled_from([None, 1, 20, 64]),
    softcap=st.sampled_from([None, 5.0]),
    dtype=st.sampled_from(list(TOLERANCES)),
    cascade=st.sampled_from([16, 1 << 30]),
    programs=st.sampled_from([1, 24, 300]),
    library=st.booleans(),
)
def test_attends_as_plain_attention_does(
    sides: list[Side], heads: tuple[int, int], dims: tuple[int, int], window: int | None, softcap: float | None,
    dtype: torch.dtype, cascade: int, programs: int, library: bool,
) -> None:  # fmt: skip
    torch.manual_seed(1)
    (n_heads, kv_heads), (key_dim, value_dim) = heads, dims
    library = library and key_dim == value_dim
    memory = PagedKvMemory(
        [LayerShape(kv_heads, key_dim, value_dim)], N_BLOCKS, dtype=dtype, device=CPU, heads=n_heads, library=library
    )
    object.__setattr__(memory.tiling, "programs", programs)
    keys, values = filled(memory, kv_heads, dims, dtype)
    query = torch.randn(1, sum(len(side.slots) for side in sides), n_heads, key_dim, dtype=dtype).transpose(1, 2)
    scoring = Scoring(0.3, window, softcap)
    inputs = inputs_for(sides, memory, cascade)
    slots = inputs.plan.slots
    out = memory.attend(0, inputs.plan, query, keys[:, :, slots], values[:, :, slots], scoring)
    row = 0
    for side in sides:
        rows = slice(row, row + len(side.slots))
        expected = reference(side, query[0, :, rows], keys[0], values[0], *scoring)
        torch.testing.assert_close(out[0, rows].float(), expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
        row += len(side.slots)


def reference(
    side: Side, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """The definition, by SDPA where it can: [rows, heads, dim] in float32."""
    past = np.arange(side.positions[-1] + 1)
    slots = side.table[past // BLOCK] * BLOCK + past % BLOCK
    group = len(query) // len(keys)
    key, value = (x[:, slots].float().repeat_interleave(group, dim=0) for x in (keys, values))
    behind = torch.from_numpy(side.positions)[:, None] - torch.from_numpy(past)
    hidden = (behind < 0) | (behind >= (window or 1 << 30))
    if softcap is None and key.shape == value.shape:
        out = torch.nn.functional.scaled_dot_product_attention(
            query.float()[None], key[None], value[None], attn_mask=~hidden, scale=scale
        )
        return out[0].transpose(0, 1)
    scores = query.float() @ key.transpose(1, 2) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return (scores.masked_fill(hidden, float("-inf")).softmax(dim=-1) @ value).transpose(0, 1)


@settings(max_examples=5, deadline=None)
@given(sides=batches(), rows=st.sampled_from([5, 8]))
def test_padding_changes_nothing(sides: list[Side], rows: int) -> None:
    """The sections of a larger step: the rows that are left over see nothing and write nothing."""
    torch.manual_seed(2)
    sides = [side for side in sides if len(side.slots) == 1] or [Side([3, 4], 17, 1)]
    memory = PagedKvMemory([LayerShape(2, 16, 16)], N_BLOCKS, dtype=torch.float32, device=CPU, heads=4)
    keys, values = filled(memory, 2, (16, 16), torch.float32)
    packed = packed_of(sides, memory, 16)
    sizes = Sizes(rows, rows, memory.tiling.most_units(rows), 0, rows)
    inputs = inputs_of(torch.from_numpy(padded(packed, sizes)), sizes, memory.tiling)
    query = torch.randn(1, 4, rows, 16)
    new = torch.randn(2, 1, 2, rows, 16)
    before = memory.keys[0].clone()
    out = memory.attend(0, inputs.plan, query, new[0], new[1], Scoring(0.25))
    written = {int(slot) for side in sides for slot in side.slots}
    unwritten = [slot for slot in range(N_BLOCKS * BLOCK) if slot not in written]
    assert torch.equal(memory.keys[0][unwritten], before[unwritten])
    for row, side in enumerate(sides):
        slot = side.slots[0]
        keys[0, :, slot], values[0, :, slot] = new[0, 0, :, row], new[1, 0, :, row]
    for row, side in enumerate(sides):
        expected = reference(side, query[0, :, row : row + 1], keys[0], values[0], 0.25, None, None)
        torch.testing.assert_close(out[0, row : row + 1], expected, rtol=2e-5, atol=2e-5)
    assert not out[0, len(sides) :].any()


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_a_broken_number_is_not_lost(dtype: torch.dtype) -> None:
    memory = PagedKvMemory([LayerShape(1, 16, 16)], 4, dtype=dtype, device=CPU, heads=1, library=False)
    x = torch.ones(1, 1, 3, 16, dtype=dtype)
    x[0, 0, 1, 3] = float("nan")
    sides = [Side([2], 0, 1), Side([1], 0, 2)]
    inputs = inputs_for(sides, memory, 1 << 30)
    out = memory.attend(0, inputs.plan, x, x, x, Scoring(1.0))
    assert out.isnan().any(dim=-1)[0, :, 0].tolist() == [False, True, True]


def test_rows_that_begin_alike_share_their_prefix() -> None:
    memory = PagedKvMemory([LayerShape(1, 16, 16)], N_BLOCKS, dtype=torch.float32, device=CPU, heads=8)
    assert memory.tiling.unit_rows == 8
    prefix = [*range(1, 10)]
    sides = [Side([*prefix, 20 + n], 150 + n, 1) for n in range(10)]
    packed = packed_of(sides, memory, 128)
    units = inputs_of(torch.from_numpy(packed.numbers), packed.sizes, memory.tiling).plan.units
    assert units.tolist() == [[0, 8, 144], [8, 10, 144]]
    assert packed_of(sides, memory, 145).sizes.units == 0


def test_a_split_depends_on_the_number_of_rows_alone() -> None:
    memory = PagedKvMemory([LayerShape(8, 16, 16)], N_BLOCKS, dtype=torch.bfloat16, device=CPU, heads=32)
    object.__setattr__(memory.tiling, "programs", 528)
    assert [memory.tiling.splits(n) for n in (1, 8, 64, 256)] == [64, 16, 2, 1]
