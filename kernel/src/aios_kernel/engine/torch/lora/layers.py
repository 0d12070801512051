"""How adapters reach a model's layers: within the compiled products where they run, behind the layer elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aios_kernel.engine.torch.lora.sites import site_of
from aios_kernel.engine.torch.lora.table import Switch, table_of
from aios_kernel.engine.torch.native.fused import NativePart
from aios_kernel.engine.torch.native.layers import NativeGatedBlock, NativeLinear


def attach(model: nn.Module, switch: Switch) -> None:
    """Have every layer that an adapter can change ask whether one does."""
    for module in list(model.modules()):
        if isinstance(module, NativeLinear | NativeGatedBlock | NativePart):
            module.attach(switch)
        elif site_of(module) >= 0:
            module.register_forward_hook(_Behind(site_of(module), switch))


class _Behind:
    """A hook behind a layer."""

    def __init__(self, site: int, switch: Switch) -> None:
        self._site = site
        self._switch = switch
        self._number = switch.number

    def __call__(self, _module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        if not self._switch.on:
            return out
        if torch.compiler.is_compiling():
            return torch.ops.aios.adapted(inputs[0], out, self._number, self._site)
        return _change(inputs[0], out, self._number, self._site)


def _change(rows: Tensor, out: Tensor, number: int, site: int) -> Tensor:
    changed = table_of(number).change(site, rows, out)
    return changed.clone() if changed is out else changed


def _shape(rows: Tensor, out: Tensor, number: int, site: int) -> Tensor:
    return torch.empty_like(out)


_operations = torch.library.Library("aios", "FRAGMENT")
_operations.define("adapted(Tensor rows, Tensor out, int number, int site) -> Tensor")
_operations.impl("adapted", _change, "CPU")
_operations.impl("adapted", _change, "CUDA")
torch.library.register_fake("aios::adapted", _shape, lib=_operations)
