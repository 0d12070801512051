"""Linear layers whose weights lie in the order in which they are multiplied.

`torch.nn.functional.linear` reorders the weight in every call, which costs more than the product itself while a step
has few rows. Where compiled products can be had they are used (`native.layers`: 1.1 to 1.4 times oneDNN at 1 to 32
rows, docs/decisions/013-compiled-products.md), else oneDNN's own order, made once
(docs/decisions/007-packed-weights-and-compiling.md).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aios_kernel.engine.torch.lora.sites import MARK, site_of
from aios_kernel.engine.torch.native import linear as products
from aios_kernel.engine.torch.native.fused import fuse_inputs
from aios_kernel.engine.torch.native.layers import NativeLinear, gated

_ROWS = 32
"""The number of rows that oneDNN chooses the order for; it serves any other number too."""
_SMALLEST = 1 << 17
"""Numbers in a weight below which oneDNN's call costs more than it saves."""
_KEEP_BYTES = 1 << 30
"""A float32 model up to this size keeps its plain weights as well where one row is multiplied faster from them."""


class PackedLinear(nn.Module):
    """A `torch.nn.Linear` for inference on the CPU.

    Args:
        linear: the layer to replace.
        keep: whether to keep the plain weight beside the packed one and use it for single rows.
    """

    bias: Tensor | None
    packed: Tensor
    plain: Tensor | None

    def __init__(self, linear: nn.Linear, *, keep: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.register_buffer("packed", torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS), persistent=False)
        bias: Tensor | None = linear._parameters["bias"]
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)
        self.register_buffer("plain", weight if keep else None, persistent=False)
        setattr(self, MARK, site_of(linear))

    def forward(self, rows: Tensor) -> Tensor:
        """The product, [..., in_features] to [..., out_features]."""
        if self.plain is not None and rows.numel() == self.in_features:
            return F.linear(rows, self.plain, self.bias)
        # The compiler takes oneDNN's own operation only with weights that it packed itself.
        multiply = torch.ops.aios.packed_linear if torch.compiler.is_compiling() else _multiply
        return multiply(rows, self.packed, self.bias, self.out_features)

    def extra_repr(self) -> str:
        """As `torch.nn.Linear` shows itself."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _multiply(rows: Tensor, packed: Tensor, bias: Tensor | None, width: int) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")


def _shape(rows: Tensor, packed: Tensor, bias: Tensor | None, width: int) -> Tensor:
    return rows.new_empty(*rows.shape[:-1], width)


_library = torch.library.Library("aios", "FRAGMENT")
_library.define("packed_linear(Tensor rows, Tensor packed, Tensor? bias, int width) -> Tensor")
_library.impl("packed_linear", _multiply, "CPU")
_library.impl("packed_linear", _multiply, "MkldnnCPU")
torch.library.register_fake("aios::packed_linear", _shape, lib=_library)


def pack_linears(model: nn.Module, *, native: bool = True) -> None:
    """Replace the plain linear layers of a model on the CPU.

    The plain weights are freed layer by layer, so that the model needs hardly more memory on the way.

    Args:
        model: to change.
        native: whether to use compiled products where they can be had.
    """
    parameter = next(model.parameters())
    if parameter.device.type != "cpu":
        return
    if native and products.served(parameter.dtype):
        _replace_linears(model, parameter.dtype, lambda child: NativeLinear(child) if _fits(child) else None)
        _replace_blocks(model)
        for parent in list(model.modules()):
            fuse_inputs(parent)
    elif onednn_serves(parameter.dtype):
        small = sum(p.nbytes for p in model.parameters()) <= _KEEP_BYTES
        keep = parameter.dtype == torch.float32 and small and _plain_rows_are_faster()
        _replace_linears(
            model,
            parameter.dtype,
            lambda child: PackedLinear(child, keep=keep) if child.weight.numel() >= _SMALLEST else None,
        )


def _replace_linears(
    model: nn.Module, dtype: torch.dtype, replacement: Callable[[nn.Linear], nn.Module | None]
) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            # A subclass may do more than multiply, and its weight may be read elsewhere.
            if type(child) is nn.Linear and child.weight.dtype == dtype and (packed := replacement(child)) is not None:
                setattr(parent, name, packed)


def _replace_blocks(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (block := gated(child)) is not None:
                setattr(parent, name, block)


def _fits(linear: nn.Linear) -> bool:
    return products.fits(linear.weight)


def _plain_rows_are_faster() -> bool:
    """Whether MKL multiplies a single float32 row faster than oneDNN: measured on Intel; on AMD in half its rate."""
    try:
        return b"GenuineIntel" in Path("/proc/cpuinfo").read_bytes()[:4096]
    except OSError:
        return True


def onednn_serves(dtype: torch.dtype) -> bool:
    """Whether oneDNN has products of packed weights of this dtype here."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
