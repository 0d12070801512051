"""Compiled products compute what torch computes, whatever the shape, the threads and the rows beside a row."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Gemma2Config, LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP
from transformers.models.llama.modeling_llama import LlamaMLP

from aios_kernel.engine.torch.native import linear as products
from aios_kernel.engine.torch.native.fused import NativePart
from aios_kernel.engine.torch.native.layers import NativeGatedBlock, NativeLinear, gated
from aios_kernel.engine.torch.packed import pack_linears

DTYPES = [pytest.param(torch.float32, 2e-5, id="float32"), pytest.param(torch.bfloat16, 1e-2, id="bfloat16")]
SHAPES = [(64, 32), (352, 384), (33, 50), (7, 4), (40, 3200)]
"""Outputs and inputs: whole panels; panels not full; inputs that are laid down in several parts."""


@pytest.fixture(autouse=True)
def _served(request: pytest.FixtureRequest) -> Iterator[None]:
    dtype = request.node.callspec.params.get("dtype", torch.float32) if hasattr(request.node, "callspec") else None
    if not products.served(dtype or torch.float32):
        pytest.skip("no compiled products for this processor: AVX-512 and a C++ compiler are needed")
    yield
    torch.set_num_threads(1)


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the result and to what results are like."""
    return float(((found.double() - expected).abs() / (expected.abs() + expected.std())).max())


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 13, 14, 15, 113, 300])
def test_a_product(rows: int, shape: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(rows)
    weight, bias, x = (torch.randn(*size).to(dtype) for size in (shape, shape[:1], (1, rows, shape[1])))
    expected = x.double() @ weight.double().T
    packed = products.packed(weight)
    assert error(products.multiply(x, packed, None, shape[0]), expected) < tolerance
    with_bias = products.multiply(x, packed, products.padded_bias(bias), shape[0])
    assert error(with_bias, expected + bias.double()) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("rows", [1, 5, 40, 150])
def test_a_gated_product(rows: int, activation: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(rows)
    gate, up, x = (torch.randn(*size).to(dtype) for size in ((96, 64), (96, 64), (1, rows, 64)))
    opened = x.double() @ gate.double().T
    opened = F.silu(opened) if activation == "silu" else F.gelu(opened, approximate="tanh")
    expected = opened * (x.double() @ up.double().T)
    number = products.ACTIVATIONS[activation]
    found = products.multiply_gated(x, products.packed(gate), products.packed(up), 96, number)
    assert error(found, expected) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_rows_beside_it_nor_on_the_threads(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, x = products.packed(torch.randn(200, 128).to(dtype)), torch.randn(1, 250, 128).to(dtype)
    alone = torch.cat([products.multiply(x[:, row : row + 1], weight, None, 200) for row in range(250)], dim=1)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(products.multiply(x, weight, None, 200), alone)


def test_rows_that_are_not_contiguous_and_not_finite() -> None:
    weight = torch.randn(32, 16)
    x = torch.randn(1, 16, 9).transpose(1, 2)
    torch.testing.assert_close(products.multiply(x, products.packed(weight), None, 32), x @ weight.T)
    broken = x.clone()
    broken[0, 3, 2] = float("nan")
    found = products.multiply(broken, products.packed(weight), None, 32)
    assert found[0].isnan().any(dim=1).nonzero().flatten().tolist() == [3]


def test_no_rows() -> None:
    assert products.multiply(torch.empty(1, 0, 16), products.packed(torch.randn(32, 16)), None, 32).shape == (1, 0, 32)


def test_an_odd_number_of_bfloat16_inputs_stays_with_torch() -> None:
    block = nn.Sequential(nn.Linear(15, 8), nn.Linear(8, 8)).to(torch.bfloat16).requires_grad_(False)
    if not products.served(torch.bfloat16):
        pytest.skip("no compiled products for bfloat16")
    pack_linears(block)
    assert [type(layer) for layer in block] == [nn.Linear, NativeLinear]


LLAMA = LlamaMLP(LlamaConfig(hidden_size=64, intermediate_size=80))
GEMMA = Gemma2MLP(Gemma2Config(hidden_size=64, intermediate_size=80))


@pytest.mark.parametrize(("block", "activation"), [(LLAMA, "silu"), (GEMMA, "gelu_tanh")], ids=["llama", "gemma2"])
def test_a_feed_forward_block_is_known_by_what_it_computes(block: Any, activation: str) -> None:
    model = nn.Sequential(block).requires_grad_(False)
    x = torch.randn(1, 6, 64)
    expected = model(x)
    pack_linears(model)
    assert isinstance(model[0], NativeGatedBlock)
    assert model[0].activation == activation
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


class Gated(nn.Module):
    """Has the three layers of a gated block."""

    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(16, 32, bias=bias), nn.Linear(16, 32, bias=bias)
        self.down_proj = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Swapped(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.up_proj(x)) * self.gate_proj(x))


class Clamped(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)).clamp(max=1.0) * self.up_proj(x))


class TwoInputs(Gated):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return super().forward(x) + other


@pytest.mark.parametrize("block", [Swapped(), Clamped(), TwoInputs(), Gated(bias=True)], ids=lambda b: type(b).__name__)
def test_what_computes_something_else_is_left_alone(block: Gated) -> None:
    model = nn.Sequential(block).requires_grad_(False)
    pack_linears(model)
    assert model[0] is block
    assert isinstance(block.gate_proj, NativeLinear)
    assert gated(block) is None


class Inputs(nn.Module):
    """Queries, keys and values as an attention makes them; `order` is that of the calls."""

    def __init__(self, *, bias: bool, order: str = "qkv") -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(64, 128, bias=bias), nn.Linear(64, 32, bias=bias)
        self.v_proj = nn.Linear(64, 64, bias=bias)
        self._order = order

    def forward(self, *inputs: Tensor) -> Tensor:
        made = [getattr(self, f"{name}_proj")(x) for name, x in zip(self._order, inputs, strict=True)]
        return torch.cat(made, dim=-1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", ["qkv", "vkq", "kqv"])
def test_layers_of_the_same_rows_are_one_product(bias: bool, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = Inputs(bias=bias, order=order).requires_grad_(False)
    apart: Any = nn.Sequential(block)
    together: Any = nn.Sequential(copy.deepcopy(block))
    with monkeypatch.context() as patch:
        patch.setattr("aios_kernel.engine.torch.packed.fuse_inputs", id)
        pack_linears(apart)
    pack_linears(together)
    assert isinstance(together[0].k_proj, NativePart)
    calls = counted(monkeypatch)
    x, other = torch.randn(1, 6, 64), torch.randn(1, 6, 64)
    for inputs in ((x, x, x), (x, other, x), (other, other, x), (x, x, x)):
        expected = apart[0](*inputs)
        calls.clear()
        assert torch.equal(together[0](*inputs), expected)
        if order == "qkv" and inputs[0] is inputs[1] is inputs[2]:
            assert len(calls) == 1
        assert order != "qkv" or together[0].q_proj.group._product is None


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each product."""
    calls: list[int] = []
    real = products.multiply

    def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None, width: int) -> Tensor:
        calls.append(width)
        return real(rows, weight, bias, width)

    monkeypatch.setattr(products, "multiply", multiply)
    return calls


def test_layers_of_other_widths_stay_apart() -> None:
    model = nn.Sequential(Inputs(bias=False)).requires_grad_(False)
    model[0].k_proj = nn.Linear(64, 20, bias=False).requires_grad_(False)  # not of whole panels
    pack_linears(model)
    assert isinstance(model[0].q_proj, NativeLinear)
