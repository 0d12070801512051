"""Compiled products to which each row's own adapter adds (lora.h): an output is rounded once, with what is added."""

from __future__ import annotations

import torch
from torch import Tensor

from aios_kernel.engine.torch.lora.table import table_of
from aios_kernel.engine.torch.native.linear import product


def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None, width: int, number: int, site: int) -> Tensor:
    """As `linear.multiply`, for the layer `site` in the forward whose table has this number."""
    table = table_of(number)
    return product(rows, weight, None, bias, width, 0, (table.call(site, rows) or 0, site, -1, table.after(site)))


def multiply_gated(  # noqa: PLR0913 - an operation takes tensors and numbers only
    rows: Tensor,
    gate: Tensor,
    weight: Tensor,
    width: int,
    activation: int,
    number: int,
    gate_site: int,
    site: int,
) -> Tensor:
    """As `linear.multiply_gated`, for two layers."""
    table = table_of(number)
    added = table.call(site, rows) or 0, site, gate_site, table.after(site)
    return product(rows, weight, gate, None, width, activation, added)


def _shape(rows: Tensor, weight: Tensor, bias: Tensor | None, width: int, *_: int) -> Tensor:
    return rows.new_empty(*rows.shape[:-1], width)


def _shape_gated(rows: Tensor, gate: Tensor, weight: Tensor, width: int, *_: int) -> Tensor:
    return rows.new_empty(*rows.shape[:-1], width)


_operations = torch.library.Library("aios", "FRAGMENT")
_operations.define(
    "multiply_adapted(Tensor rows, Tensor weight, Tensor? bias, int width, int number, int site) -> Tensor"
)
_operations.impl("multiply_adapted", multiply, "CPU")
torch.library.register_fake("aios::multiply_adapted", _shape, lib=_operations)
_operations.define(
    "multiply_gated_adapted(Tensor rows, Tensor gate, Tensor weight, int width, int activation, int number,"
    " int gate_site, int site) -> Tensor"
)
_operations.impl("multiply_gated_adapted", multiply_gated, "CPU")
torch.library.register_fake("aios::multiply_gated_adapted", _shape_gated, lib=_operations)
