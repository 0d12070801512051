"""Which rows attend to which blocks, as the kernels want to be told: one array, copied to the device at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aios_kernel.engine.torch.native.plan import Plan
from aios_kernel.engine.torch.prefix import BLOCK

Numbers = NDArray[np.int64]
CASCADE_TOKENS = 128
"""A shared prefix shorter than this is attended to row by row: merging costs more than reading it again."""
_NOWHERE = -1
"""Slot of a row that is only padding: nothing is written."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How work is cut for a device.

    Attributes:
        group: query heads of a KV head.
        kv_heads: of a layer.
        lanes: rows times query heads that a program takes of a shared prefix.
        piece: tokens of a chunk that a program takes.
        programs: that keep the device busy.
    """

    group: int
    kv_heads: int
    lanes: int
    piece: int
    programs: int

    @property
    def unit_rows(self) -> int:
        """Rows of a unit that one program takes."""
        return max(1, self.lanes // self.group)

    def splits(self, n: int) -> int:
        """Parts that the tokens of each of `n` rows or units are cut into; depends on nothing else."""
        wanted = -(-self.programs // max(1, n * self.kv_heads))
        return min(64, 1 << max(0, wanted - 1).bit_length())

    def most_units(self, rows: int) -> int:
        """Units of shared prefixes that a step of so many rows has at most."""
        return -(-rows // self.unit_rows) + 2


class Sizes(NamedTuple):
    """What the sections of a step's array hold: packed rows, rows of single tokens, units, pieces, rows with logits."""

    rows: int
    singles: int
    units: int
    pieces: int
    wanted: int

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the sections; the block tables follow."""
        return [
            (self.rows,), (self.rows,), (self.rows,), (self.wanted,),
            (self.singles,), (self.singles,), (self.singles,), (self.units, 3), (self.pieces, 4),
        ]  # fmt: skip

    @property
    def header(self) -> int:
        """Numbers in front of the block tables."""
        return 3 * self.rows + self.wanted + 3 * self.singles + 3 * self.units + 4 * self.pieces


class PagedPlan(NamedTuple):
    """A step on the device; all numbers are int64.

    Attributes:
        slots: where each row's key and value go; negative: nowhere, [rows].
        offsets: where the block table of each single row begins, [singles].
        lengths: KV length of each single row, its own token included; 0: padding, [singles].
        shared: tokens of each single row that a unit attends to, [singles].
        units: see `kernels.prefix`, [units, 3].
        pieces: see `kernels.chunk`, [pieces, 4].
        tables: the block tables, one behind the other.
        splits: parts of a single row's tokens.
        unit_splits: parts of a unit's.
        plain: chunks without a past, as first and last packed row; their pieces are the last ones.
        plain_pieces: how many.
    """

    slots: Tensor
    offsets: Tensor
    lengths: Tensor
    shared: Tensor
    units: Tensor
    pieces: Tensor
    tables: Tensor
    splits: int
    unit_splits: int
    plain: tuple[tuple[int, int], ...] = ()
    plain_pieces: int = 0


class Inputs(NamedTuple):
    """A forward's inputs on the device."""

    ids: Tensor
    positions: Tensor
    wanted: Tensor
    """Rows whose logits are wanted."""
    plan: PagedPlan


class Step(NamedTuple):
    """A forward's inputs on the host, still to be packed into one array."""

    ids: Numbers
    wanted: Numbers
    n_singles: int
    plan: Plan
    """Of `native.plan`: tables, offsets of rows, and which rows begin alike."""


class Packed(NamedTuple):
    """The array of a step, how to read it, and what of it only the host needs."""

    numbers: Numbers
    sizes: Sizes
    plain: tuple[tuple[int, int], ...]
    plain_pieces: int


def pack_step(step: Step, tiling: Tiling, *, cascade_tokens: int = CASCADE_TOKENS) -> Packed:
    """Put a step into one array."""
    n, plan = step.n_singles, step.plan
    units = _units(plan, n, tiling, cascade_tokens)
    pieces, plain, plain_pieces = _pieces(plan, n, tiling)
    sizes = Sizes(len(step.ids), n, len(units), len(pieces), len(step.wanted))
    sections = [
        step.ids, plan.positions, plan.slots, step.wanted,
        plan.offsets[:n], plan.positions[:n] + 1, _shared(units, n), units.reshape(-1), pieces.reshape(-1),
        plan.tables,
    ]  # fmt: skip
    return Packed(np.concatenate(sections), sizes, plain, plain_pieces)


def padded(packed: Packed, sizes: Sizes) -> Numbers:
    """The array of a decode step with sections of other, larger sizes; what is added does nothing."""
    old, new = packed.sizes, sizes
    out = np.zeros(new.header + len(packed.numbers) - old.header, dtype=np.int64)
    source = target = 0
    for number, (have, want) in enumerate(zip(old.shapes, new.shapes, strict=True)):
        n, width = int(np.prod(have)), int(np.prod(want))
        out[target : target + n] = packed.numbers[source : source + n]
        if number == _SLOTS:
            out[target + n : target + width] = _NOWHERE
        source, target = source + n, target + width
    out[target:] = packed.numbers[source:]
    return out


_SLOTS = 2
"""Number of the section."""


def inputs_of(numbers: Tensor, sizes: Sizes, tiling: Tiling, packed: Packed | None = None) -> Inputs:
    """Views of a step's array.

    Args:
        numbers: on the device.
        sizes: of its sections.
        tiling: says how the kernels split their work.
        packed: tells of chunks without a past; None: there are no chunks.
    """
    parts: list[Tensor] = []
    at = 0
    for shape in sizes.shapes:
        n = int(np.prod(shape))
        parts.append(numbers[at : at + n].view(shape))
        at += n
    ids, positions, slots, wanted, offsets, lengths, shared, units, pieces = parts
    splits, unit_splits = tiling.splits(sizes.singles), tiling.splits(sizes.units)
    plain, count = (packed.plain, packed.plain_pieces) if packed is not None else ((), 0)
    plan = PagedPlan(
        slots, offsets, lengths, shared, units, pieces, numbers[at:], splits, unit_splits, plain, count
    )  # fmt: skip
    return Inputs(ids, positions, wanted, plan)


def upload(numbers: Numbers, device: torch.device) -> Tensor:
    """The array on a device; the copy waits for nothing, and nothing waits for it but what comes later there."""
    return pinned(numbers, device).to(device, non_blocking=True)


def pinned(numbers: Numbers, device: torch.device) -> Tensor:
    """The array where a device can fetch it by itself."""
    host = torch.from_numpy(numbers)
    return host.pin_memory() if device.type == "cuda" else host


def _units(plan: Plan, n_singles: int, tiling: Tiling, cascade_tokens: int) -> Numbers:
    """Prefixes worth attending to together, the most rewarding first if there are too many: [units, 3]."""
    found: list[tuple[int, int, int, int]] = []
    for low, high, blocks in plan.units[plan.units[:, 1] <= n_singles].tolist():
        tokens = min(blocks * BLOCK, int(plan.positions[low:high].min()))
        if high - low < 2 or tokens < cascade_tokens:
            continue
        for first in range(low, high, tiling.unit_rows):
            behind = min(high, first + tiling.unit_rows)
            if behind - first > 1:
                found.append((-tokens * (behind - first - 1), first, behind, tokens))
    chosen = sorted(found)[: tiling.most_units(n_singles)]
    return np.array([unit[1:] for unit in chosen], dtype=np.int64).reshape(-1, 3)


def _shared(units: Numbers, n_singles: int) -> Numbers:
    shared = np.zeros(n_singles, dtype=np.int64)
    for first, behind, tokens in units.tolist():
        shared[first:behind] = tokens
    return shared


def _pieces(plan: Plan, n_singles: int, tiling: Tiling) -> tuple[Numbers, tuple[tuple[int, int], ...], int]:
    """Pieces of the chunks, those without a past last; these chunks; and how many of the pieces are theirs."""
    behind: list[tuple[int, int, int, int]] = []
    alone: list[tuple[int, int, int, int]] = []
    plain: list[tuple[int, int]] = []
    for low, high, _ in plan.units[plan.units[:, 1] > n_singles].tolist():
        start, offset = int(plan.positions[low]), int(plan.offsets[low])
        target = behind if start else alone
        if not start:
            plain.append((low, high))
        for first in range(low, high, tiling.piece):
            target.append((first, min(tiling.piece, high - first), start + first - low, offset))
    return np.array([*behind, *alone], dtype=np.int64).reshape(-1, 4), tuple(plain), len(alone)
