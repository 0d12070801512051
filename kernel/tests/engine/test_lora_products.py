"""Layers with adapters compute what torch computes, whatever the shape, the ranks and the rows beside a row."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aios_kernel.engine.torch.lora.adapter import Adapter, read_adapter
from aios_kernel.engine.torch.lora.layers import attach
from aios_kernel.engine.torch.lora.sites import find_sites
from aios_kernel.engine.torch.lora.table import Switch, Table
from aios_kernel.engine.torch.native import linear as products
from aios_kernel.engine.torch.packed import pack_linears

DTYPES = [pytest.param(torch.float32, 1e-4, id="float32"), pytest.param(torch.bfloat16, 3e-2, id="bfloat16")]
RANKS = [1, 3, 8, 12, 20, 64]
SHAPES = [(64, 96), (50, 70), (34, 1700)]
"""Inputs and inner width: whole vectors and panels; neither; an input that is laid down in several parts."""
Users = list[tuple[Adapter | None, int]]


@pytest.fixture(autouse=True)
def _one_thread_again() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


class Block(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(inputs, width, bias=False), nn.Linear(inputs, width, bias=False)
        self.down_proj = nn.Linear(width, inputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Model(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.mlp = Block(inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)

    def get_output_embeddings(self) -> None:
        return None


class Case:
    """A feed-forward block with adapters of several ranks, one of them not on every layer."""

    def __init__(
        self, writer: Callable[..., Path], folder: Path, dtype: torch.dtype, shape: tuple[int, int], *, native: bool
    ) -> None:
        if native and not products.served(dtype):
            pytest.skip("no compiled products for this processor: AVX-512 and a C++ compiler are needed")
        torch.manual_seed(0)
        self.model: Any = Model(*shape).to(dtype).requires_grad_(False)
        self.weights = {name: value.double() for name, value in self.model.state_dict().items()}
        self.sites = find_sites(self.model)
        self.switch = Switch()
        self.adapters: list[Adapter] = []
        for rank in RANKS:
            on = ".*_proj" if rank != 12 else "(gate|down)_proj"
            place = writer(folder / f"{rank}", self.model, rank=rank, seed=rank, on=on)
            self.adapters.append(read_adapter(f"{rank}", place, self.sites, dtype))
        pack_linears(self.model, native=native)
        attach(self.model, self.switch)

    def run(self, x: Tensor, users: Users) -> Tensor:
        table = Table(users, self.sites, lambda adapter: adapter.weights, torch.device("cpu"))
        with self.switch.running(table), torch.inference_mode():
            return self.model(x)

    def expected(self, x: Tensor, adapter: Adapter | None) -> Tensor:
        """By the merged weights, in double precision."""
        merged = dict(self.weights)
        for number, site in enumerate(self.sites):
            pair = adapter.matrices(number, site) if adapter is not None else None
            if adapter is not None and pair is not None:
                merged[f"{site.name}.weight"] = merged[f"{site.name}.weight"] + adapter.scale(number) * (
                    pair[1].double().T @ pair[0].double()
                )
        gate, up, down = (merged[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x.double()
        return (nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T + merged["mlp.down_proj.bias"]

    def users(self, n_rows: int, seed: int) -> Users:
        """Adapters in turns of random length; some rows have none, some adapters come twice."""
        chooser, users, left = random.Random(seed), [], n_rows
        while left:
            turn = min(left, chooser.choice([1, 1, 2, 3, 5, 17]))
            users.append((chooser.choice([None, *self.adapters]), turn))
            left -= turn
        return users


@pytest.mark.parametrize("native", [True, False], ids=["native", "plain"])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 40, 150])
def test_a_block_with_adapters(
    lora_writer: Any, tmp_path: Path, native: bool, dtype: torch.dtype, tolerance: float, shape: Any, rows: int
) -> None:
    case = Case(lora_writer, tmp_path, dtype, shape, native=native)
    x = torch.randn(1, rows, shape[0]).to(dtype)
    for seed in range(3):
        users, at = case.users(rows, seed), 0
        found = case.run(x, users)[0].double()
        for adapter, turn in users:
            expected = case.expected(x[0, at : at + turn], adapter)
            difference = (found[at : at + turn] - expected).norm() / expected.norm()
            # Without compiled products every step in between is rounded.
            assert difference < tolerance * (1 if native else 3), adapter and adapter.name
            at += turn


def test_many_adapters_of_one_row_each(lora_writer: Any, tmp_path: Path) -> None:
    case = Case(lora_writer, tmp_path, torch.float32, SHAPES[0], native=False)
    x = torch.randn(1, len(RANKS), SHAPES[0][0])
    found = case.run(x, [(adapter, 1) for adapter in case.adapters])
    for row, adapter in enumerate(case.adapters):
        torch.testing.assert_close(found[0, row].double(), case.expected(x[0, row], adapter), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "_tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_does_not_depend_on_the_rows_beside_it_nor_on_the_threads(
    lora_writer: Any, tmp_path: Path, dtype: torch.dtype, _tolerance: float, shape: Any
) -> None:
    case = Case(lora_writer, tmp_path, dtype, shape, native=True)
    x = torch.randn(1, 90, shape[0]).to(dtype)
    users = case.users(90, 7)
    of_rows = [adapter for adapter, turn in users for _ in range(turn)]
    alone = torch.cat([case.run(x[:, row : row + 1], [(of_rows[row], 1)]) for row in range(90)], dim=1)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(case.run(x, users), alone)
    with torch.inference_mode():
        plain = case.model(x)
    for row, adapter in enumerate(of_rows):
        assert torch.equal(plain[0, row], alone[0, row]) == (adapter is None)


def test_a_layer_that_sees_other_rows_than_the_table_is_an_error(lora_writer: Any, tmp_path: Path) -> None:
    """It would get somebody else's adapter."""
    for native in (True, False):
        case = Case(lora_writer, tmp_path, torch.float32, SHAPES[0], native=native)
        with pytest.raises(RuntimeError, match="sees 3 of 2 rows"):
            case.run(torch.randn(1, 3, SHAPES[0][0]), [(case.adapters[0], 2)])
