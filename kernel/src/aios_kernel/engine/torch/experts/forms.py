"""How an expert lies in memory, and what is computed with it: in full precision, or in int8 with a scale a channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Gate = Callable[[Tensor], Tensor]
"""Of the model: [rows, 2 * width] of gate and up to [rows, width]."""


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """Experts `down(gate(x) * up(x))` of one shape: `count` a layer, `hidden` to `width` and back."""

    count: int
    hidden: int
    width: int

    @property
    def numbers(self) -> int:
        """Weights of an expert."""
        return 3 * self.hidden * self.width

    def part(self, name: str) -> tuple[int, int]:
        """Shape of `gate`, `up`, `gate_up` or `down`: [outputs, inputs]."""
        if name == "down":
            return self.hidden, self.width
        return (2 if name == "gate_up" else 1) * self.width, self.hidden


class Slot:
    """Memory for one expert on the model's device, filled with one after the other.

    Attributes:
        memory: all of it, [nbytes] uint8.
        direct: whether its bytes are those that are stored, so that they can be read into it.
        released: event behind the last use on a CUDA device; None elsewhere.
    """

    memory: Tensor
    direct = True

    def __init__(self) -> None:
        self.released: Any = None

    def drop(self) -> None:
        """Free the memory."""
        self.__dict__.clear()

    def apply(self, rows: Tensor, gate: Gate, out: Tensor) -> None:
        """Compute the expert's output of rows, [rows, hidden], into `out` of the same shape."""
        raise NotImplementedError

    def fill(self, stored: Tensor) -> None:
        """Take over an expert as it is stored, uint8 in host memory."""
        raise NotImplementedError


class FullSlot(Slot):
    """An expert in the model's dtype; `stored` may be of another float dtype.

    Args:
        shape: of the expert.
        dtype: of the model.
        stored: dtype in the checkpoint.
        device: of the model.
    """

    def __init__(self, shape: ExpertShape, dtype: torch.dtype, stored: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._stored, self.direct = stored, stored == dtype
        self._numbers = torch.empty(shape.numbers, dtype=dtype, device=device)
        self.memory = self._numbers.view(torch.uint8)
        gate_up, down = self._numbers.split([2 * shape.hidden * shape.width, shape.hidden * shape.width])
        self._gate_up, self._down_turned = gate_up.view(shape.part("gate_up")), down.view(shape.part("down")).t()

    def apply(self, rows: Tensor, gate: Gate, out: Tensor) -> None:
        """See `Slot`."""
        torch.mm(gate(F.linear(rows, self._gate_up)), self._down_turned, out=out)

    def fill(self, stored: Tensor) -> None:
        """See `Slot`."""
        self._numbers.copy_(stored.view(self._stored), non_blocking=True)


class Int8Slot(Slot):
    """An expert in int8: scales of gate and up, scales of down (float32), then the weights in the same order.

    Products are computed in the model's dtype and scaled afterwards, each output by its own scale.
    """

    def __init__(self, shape: ExpertShape, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._dtype = dtype
        self.memory = torch.empty(int8_bytes(shape), dtype=torch.uint8, device=device)
        rows, half = 2 * shape.width + shape.hidden, 2 * shape.width
        scales = self.memory[: 4 * rows].view(torch.float32)
        weights = self.memory[4 * rows :].view(torch.int8)
        self._scales = scales[:half], scales[half:]
        gate_up, down = weights.split([half * shape.hidden, shape.hidden * shape.width])
        self._gate_up, self._down = gate_up.view(shape.part("gate_up")), down.view(shape.part("down"))

    def apply(self, rows: Tensor, gate: Gate, out: Tensor) -> None:
        """See `Slot`."""
        first = F.linear(rows, self._gate_up.to(self._dtype)) * self._scales[0].to(self._dtype)
        torch.mul(F.linear(gate(first), self._down.to(self._dtype)), self._scales[1].to(self._dtype), out=out)

    def fill(self, stored: Tensor) -> None:
        """See `Slot`."""
        self.memory.copy_(stored, non_blocking=True)


def int8_bytes(shape: ExpertShape) -> int:
    """Size of an expert in int8."""
    return shape.numbers + 4 * (2 * shape.width + shape.hidden)


def to_int8(numbers: Tensor, shape: ExpertShape) -> Tensor:
    """An expert in int8, rounded to nearest within each output's largest weight; [int8_bytes] uint8.

    Args:
        numbers: gate, up and down in full precision, [3 * hidden * width].
        shape: of the expert.
    """
    gate_up, down = numbers.float().split([2 * shape.hidden * shape.width, shape.hidden * shape.width])
    scales: list[Tensor] = []
    weights: list[Tensor] = []
    for part in (gate_up.view(shape.part("gate_up")), down.view(shape.part("down"))):
        scale = part.abs().amax(dim=1).clamp_min(1e-12) / 127
        scales.append(scale.view(torch.uint8))
        weights.append((part / scale[:, None]).round().to(torch.int8).view(torch.uint8).reshape(-1))
    return torch.cat([*scales, *weights])
