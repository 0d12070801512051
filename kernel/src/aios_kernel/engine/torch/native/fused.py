"""Linear layers that multiply the same rows: their weights lie in one, and the product is made once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aios_kernel.engine.torch.lora.table import Switch
from aios_kernel.engine.torch.native import adapted
from aios_kernel.engine.torch.native import linear as products
from aios_kernel.engine.torch.native.layers import NativeLinear

_TOGETHER = ("q_proj", "k_proj", "v_proj")
"""Layers of an attention that transformers calls with the same rows, in this order."""


class _Group(nn.Module):
    """The product of several layers.

    The first layer that is called makes it for all of them, the last one lets it go. A layer that is called with other
    rows than the one before it makes its own: whatever a model does, the result is right.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layers: list[NativeLinear]) -> None:
        super().__init__()
        self.register_buffer("weight", torch.cat([layer.weight for layer in layers]), persistent=False)
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.register_buffer("bias", torch.cat(biases) if biases else None, persistent=False)
        self.width = sum(layer.out_features for layer in layers)
        self._last = len(layers) - 1
        self._rows: Tensor | None = None
        self._product: Tensor | None = None

    def product(self, rows: Tensor, place: int) -> Tensor:
        """All outputs, [..., width], for the layer at a place of the group."""
        product = self._product
        if product is None or self._rows is not rows:
            multiply = torch.ops.aios.multiply if torch.compiler.is_compiling() else products.multiply
            product = multiply(rows, self.weight, self.bias, self.width)
        self._rows, self._product = (rows, product) if place < self._last else (None, None)
        return product


class NativePart(nn.Module):
    """One layer of a group, in the place of a `NativeLinear`. Where adapters change it, it makes its own product."""

    weight: Tensor
    bias: Tensor | None
    _switch: Switch | None

    def __init__(self, group: _Group, place: int, layer: NativeLinear, first: int) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.group = group
        self._place, self._first = place, first
        end = first + self.out_features
        panels = group.weight[first // products.PANEL : end // products.PANEL]
        self.register_buffer("weight", panels, persistent=False)  # a view, as the bias
        self.register_buffer("bias", None if group.bias is None else group.bias[first:end], persistent=False)
        self.site, self._switch, self._number = layer.site, None, 0

    def attach(self, switch: Switch) -> None:
        """Let adapters change the layer while the switch is on."""
        if self.site >= 0:
            self._switch, self._number = switch, switch.number

    def forward(self, rows: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features], a view of the product."""
        if self._switch is not None and self._switch.on:
            multiply = torch.ops.aios.multiply_adapted if torch.compiler.is_compiling() else adapted.multiply
            return multiply(rows, self.weight, self.bias, self.out_features, self._number, self.site)
        product = self.group.product(rows, self._place)
        return product[..., self._first : self._first + self.out_features]

    def extra_repr(self) -> str:
        """As `torch.nn.Linear` shows itself."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def fuse_inputs(parent: nn.Module) -> None:
    """Put the layers of an attention that multiply the same rows together, if it has them and they fit."""
    layers = [getattr(parent, name, None) for name in _TOGETHER]
    held = [layer for layer in layers if isinstance(layer, NativeLinear)]
    if len(held) < len(layers) or any(layer.out_features % products.PANEL for layer in held):
        return
    if len({(layer.in_features, layer.bias is None, layer.weight.dtype) for layer in held}) > 1:
        return
    group, first = _Group(held), 0
    for place, (name, layer) in enumerate(zip(_TOGETHER, held, strict=True)):
        setattr(parent, name, NativePart(group, place, layer, first))
        first += layer.out_features
