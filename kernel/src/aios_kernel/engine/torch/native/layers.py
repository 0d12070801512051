"""Modules that take the place of a model's linear layers, and of feed-forward blocks of a known form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aios_kernel.engine.torch.lora.sites import site_of
from aios_kernel.engine.torch.lora.table import Switch
from aios_kernel.engine.torch.native import adapted
from aios_kernel.engine.torch.native import linear as products

_ALIKE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""How far two ways to compute the same may differ, relative to the result."""
_SPREAD = 2.0
"""Of what enters the activation when two blocks are compared: near zero all activations are alike."""


class NativeLinear(nn.Module):
    """A `torch.nn.Linear` for inference, its weight in the order of linear.cpp."""

    bias: Tensor | None
    weight: Tensor
    _switch: Switch | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("weight", products.packed(linear.weight.detach()), persistent=False)
        bias: Tensor | None = linear._parameters["bias"]
        self.register_buffer("bias", None if bias is None else products.padded_bias(bias.detach()), persistent=False)
        self.site, self._switch, self._number = site_of(linear), None, 0

    def attach(self, switch: Switch) -> None:
        """Let adapters change the layer while the switch is on."""
        if self.site >= 0:
            self._switch, self._number = switch, switch.number

    def forward(self, rows: Tensor) -> Tensor:
        """The product, [..., in_features] to [..., out_features]."""
        if self._switch is not None and self._switch.on:
            multiply = torch.ops.aios.multiply_adapted if torch.compiler.is_compiling() else adapted.multiply
            return multiply(rows, self.weight, self.bias, self.out_features, self._number, self.site)
        multiply = torch.ops.aios.multiply if torch.compiler.is_compiling() else products.multiply
        return multiply(rows, self.weight, self.bias, self.out_features)

    def extra_repr(self) -> str:
        """As `torch.nn.Linear` shows itself."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class NativeGatedBlock(nn.Module):
    """`down(activation(gate(x)) * up(x))`, the gate and the activation within the product of `up`.

    Args:
        gate: without a bias, as `up`.
        up: see `gate`.
        down: any.
        activation: one of `linear.ACTIVATIONS`.
    """

    gate: Tensor
    up: Tensor
    _switch: Switch | None

    def __init__(self, gate: NativeLinear, up: NativeLinear, down: nn.Module, activation: str) -> None:
        super().__init__()
        self.register_buffer("gate", gate.weight, persistent=False)
        self.register_buffer("up", up.weight, persistent=False)
        self.width, self.activation = up.out_features, activation
        self._number = products.ACTIVATIONS[activation]
        self.down = down
        self.sites, self._switch, self._switch_number = (gate.site, up.site), None, 0

    def attach(self, switch: Switch) -> None:
        """Let adapters change gate and up while the switch is on; `down` is a layer of its own."""
        if min(self.sites) >= 0:
            self._switch, self._switch_number = switch, switch.number

    def forward(self, rows: Tensor) -> Tensor:
        """[..., inputs] to [..., inputs]."""
        if self._switch is not None and self._switch.on:
            product = torch.ops.aios.multiply_gated_adapted if torch.compiler.is_compiling() else adapted.multiply_gated
            where = self._switch_number, *self.sites
            return self.down(product(rows, self.gate, self.up, self.width, self._number, *where))
        multiply = torch.ops.aios.multiply_gated if torch.compiler.is_compiling() else products.multiply_gated
        return self.down(multiply(rows, self.gate, self.up, self.width, self._number))


def gated(block: nn.Module) -> NativeGatedBlock | None:
    """What can take the place of a model's feed-forward block, or None.

    A block qualifies by what it computes, not by its name: it has the three layers, and one of the activations makes
    the same of random rows.
    """
    gate, up, down = (getattr(block, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    if not (isinstance(gate, NativeLinear) and isinstance(up, NativeLinear) and isinstance(down, nn.Module)):
        return None
    if gate.bias is not None or up.bias is not None or gate.out_features != up.out_features:
        return None
    rows = _telling_rows(gate)
    expected = _result(block, rows)
    for activation in products.ACTIVATIONS:
        candidate = NativeGatedBlock(gate, up, down, activation)
        found = _result(candidate, rows)
        if expected is not None and found is not None and _alike(found, expected):
            return candidate
    return None


def _telling_rows(gate: NativeLinear) -> Tensor:
    """Random rows, [1, 4, inputs], that bring the gate where activations differ."""
    source = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 4, gate.in_features, generator=source).to(gate.weight.dtype)
    return rows * (_SPREAD / gate(rows).float().std().clamp_min(1e-6)).to(rows.dtype)


def _result(block: Any, rows: Tensor) -> Tensor | None:
    with torch.inference_mode():
        try:
            result = block(rows)
        except (TypeError, ValueError, RuntimeError):  # it wants other arguments, so it is another kind of block
            return None
    return result if isinstance(result, Tensor) else None


def _alike(found: Tensor, expected: Tensor) -> bool:
    difference = (found.float() - expected.float()).norm() / expected.float().norm()
    return bool(found.shape == expected.shape and difference < _ALIKE[expected.dtype])
