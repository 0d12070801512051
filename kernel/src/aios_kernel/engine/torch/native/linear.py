"""Linear layers on the compiled products (linear.cpp), and the two halves of a gated layer in one."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import torch
from torch import Tensor

from aios_kernel.engine.torch.direct import call_directly
from aios_kernel.engine.torch.native.build import library, processor_flags

_FUNCTIONS = {torch.float32: "aios_multiply_float32", torch.bfloat16: "aios_multiply_bfloat16"}
_NEEDS = {torch.float32: "avx512f", torch.bfloat16: "avx512_bf16"}
_TILES = "amx_bf16"
"""A processor that multiplies tiles of bfloat16 does it several times faster than ours: oneDNN knows how."""
PANEL = 32
ACTIVATIONS = {"silu": 1, "gelu_tanh": 2}


_call = struct.Struct("5P 5q P 3q").pack
"""`Call` of linear.cpp: rows, weight, gate, bias, out; n_rows, words, width, activation, threads; table; site,
gate_site, next_site. A structure of ctypes takes several times as long to make."""


def served(dtype: torch.dtype) -> bool:
    """Whether the products can be had for weights of this dtype, and are the fastest here."""
    if dtype not in _FUNCTIONS or _NEEDS[dtype] not in processor_flags():
        return False
    return not (dtype == torch.bfloat16 and _TILES in processor_flags()) and library() is not None


def fits(weight: Tensor) -> bool:
    """Whether a weight can be packed: its inputs must be whole words."""
    return weight.shape[1] * weight.element_size() % 4 == 0


def packed(weight: Tensor) -> Tensor:
    """A weight, [outputs, inputs], in panels: [panels, words, 32 outputs, numbers of a word]."""
    outputs, inputs = weight.shape
    per_word = 4 // weight.element_size()
    padded = torch.nn.functional.pad(weight, (0, 0, 0, -outputs % PANEL))
    return padded.view(-1, PANEL, inputs // per_word, per_word).permute(0, 2, 1, 3).contiguous()


def padded_bias(bias: Tensor) -> Tensor:
    """A bias as the products want it: float32, of whole panels."""
    return torch.nn.functional.pad(bias.float(), (0, -len(bias) % PANEL))


def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None, width: int) -> Tensor:
    """`rows @ weight.T + bias`.

    Args:
        rows: [..., inputs].
        weight: see `packed`.
        bias: see `padded_bias`.
        width: number of outputs.

    Returns:
        [..., width], in the rows' dtype.
    """
    return product(rows, weight, None, bias, width)


def multiply_gated(rows: Tensor, gate: Tensor, weight: Tensor, width: int, activation: int) -> Tensor:
    """`activation(rows @ gate.T) * (rows @ weight.T)`; arguments as of `multiply`, a number of `ACTIVATIONS`."""
    return product(rows, weight, gate, None, width, activation)


def product(
    rows: Tensor,
    weight: Tensor,
    gate: Tensor | None,
    bias: Tensor | None,
    width: int,
    activation: int = 0,
    added: tuple[int, int, int, int] = (0, -1, -1, -1),
) -> Tensor:
    """A product of any kind.

    `added` is the address of a table of adapters, and numbers of layers: this one, its gate, the one that is next.
    """
    rows = rows.contiguous()
    shape = rows.shape
    out = torch.empty((*shape[:-1], width), dtype=rows.dtype)
    call = _call(
        rows.data_ptr(),
        weight.data_ptr(),
        0 if gate is None else gate.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        rows.numel() // shape[-1],
        weight.shape[1],
        width,
        activation,
        torch.get_num_threads(),
        *added,
    )
    _function(rows.dtype)(call)
    return out


_loaded: dict[torch.dtype, Any] = {}


def _function(dtype: torch.dtype) -> Any:
    function = _loaded.get(dtype)
    if function is None:
        function = _loaded[dtype] = getattr(library(), _FUNCTIONS[dtype])
        function.restype = None
        function.argtypes = [ctypes.c_char_p]
    return function


def _shape(rows: Tensor, weight: Tensor, bias: Tensor | None, width: int) -> Tensor:
    return rows.new_empty(*rows.shape[:-1], width)


def _shape_gated(rows: Tensor, gate: Tensor, weight: Tensor, width: int, activation: int) -> Tensor:
    return rows.new_empty(*rows.shape[:-1], width)


_operations = torch.library.Library("aios", "FRAGMENT")
_operations.define("multiply(Tensor rows, Tensor weight, Tensor? bias, int width) -> Tensor")
_operations.impl("multiply", multiply, "CPU")
torch.library.register_fake("aios::multiply", _shape, lib=_operations)
call_directly(torch.ops.aios.multiply.default, multiply)
_operations.define("multiply_gated(Tensor rows, Tensor gate, Tensor weight, int width, int activation) -> Tensor")
_operations.impl("multiply_gated", multiply_gated, "CPU")
torch.library.register_fake("aios::multiply_gated", _shape_gated, lib=_operations)
call_directly(torch.ops.aios.multiply_gated.default, multiply_gated)
