"""Which rows of a forward which adapter changes, laid out once for all of its layers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aios_kernel.engine.torch.lora.adapter import Adapter
from aios_kernel.engine.torch.lora.sites import Site

Users = Sequence[tuple[Adapter | None, int]]
"""Adapters of the packed rows: whose turn it is, and for how many rows."""
_LOOPED = 4
"""Adapters in a forward up to which each is multiplied by itself; more, of one row each, together."""


class CTable(ctypes.Structure):
    """`Table` of lora.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("order", "ends", "adapters")),
        *((name, ctypes.c_int64) for name in ("n_units", "n_rows")),
    ]


class Table:
    """The rows of one forward by adapter.

    Args:
        users: of all rows, in their order.
        sites: the model's layers.
        weights: gives an adapter's weights on the device of the rows.
        device: of the rows.

    Attributes:
        n_rows: of the forward.
    """

    def __init__(
        self, users: Users, sites: Sequence[Site], weights: Callable[[Adapter], Tensor], device: torch.device
    ) -> None:
        rows: dict[Adapter, list[int]] = {}
        at = 0
        for adapter, n_rows in users:
            if adapter is not None:
                rows.setdefault(adapter, []).extend(range(at, at + n_rows))
            at += n_rows
        self.n_rows = at
        self._sites = sites
        self._device = device
        self._units = [(adapter, weights(adapter), members) for adapter, members in rows.items()]
        self._pairs: dict[int, list[tuple[Tensor, Tensor] | None]] = {}
        self._stacks: dict[int, tuple[Tensor, Tensor]] = {}
        self._order = np.array([row for members in rows.values() for row in members], dtype=np.int64)
        self._ends = np.cumsum([len(members) for members in rows.values()], dtype=np.int64)
        self._adapters = np.array(
            [(copy.data_ptr(), adapter.layout.ctypes.data) for adapter, copy, _ in self._units], dtype=np.int64
        )
        self._rows = torch.from_numpy(self._order).to(device)
        self._call = CTable(
            self._order.ctypes.data, self._ends.ctypes.data, self._adapters.ctypes.data, len(self._units), at
        )

    def call(self, site: int, rows: Tensor) -> int | None:
        """Address of the same for lora.h; None where no row has an adapter.

        Raises:
            RuntimeError: a layer sees other rows, [..., inputs], than the table is of.
        """
        if not self._units:
            return None
        n_rows = rows.numel() // rows.shape[-1]
        if n_rows != self.n_rows:
            raise RuntimeError(f"{self._sites[site].name} sees {n_rows} of {self.n_rows} rows")
        return ctypes.addressof(self._call)

    def after(self, site: int) -> int:
        """The layer that is computed after one, as a rule; -1: there is none."""
        return site + 1 if site + 1 < len(self._sites) else -1

    def change(self, site: int, rows: Tensor, out: Tensor) -> Tensor:
        """The result of a layer with what the adapters add to it.

        Args:
            site: number of the layer.
            rows: what went into it, [..., inputs].
            out: what came out of it, [..., outputs]; it stays as it is.
        """
        if self.call(site, rows) is None:
            return out
        flat = rows.reshape(-1, rows.shape[-1])
        changed = out.clone()
        target = changed.view(-1, out.shape[-1])
        if len(self._units) > _LOOPED and len(self._units) == len(self._order):
            self._change_together(site, flat, target)
        else:
            self._change_one_by_one(site, flat, target)
        return changed

    def _change_one_by_one(self, site: int, rows: Tensor, out: Tensor) -> None:
        if site not in self._pairs:
            self._pairs[site] = [
                adapter.matrices(site, self._sites[site], weights) for adapter, weights, _ in self._units
            ]
        begin = 0
        for (adapter, _, _), pair, end in zip(self._units, self._pairs[site], self._ends.tolist(), strict=True):
            members, begin = self._rows[begin:end], end
            if pair is not None:
                out.index_add_(0, members, F.linear(rows[members], pair[0]) @ pair[1] * adapter.scale(site))

    def _change_together(self, site: int, rows: Tensor, out: Tensor) -> None:
        """One row of each adapter: two products of all of them."""
        a, b = self._stack(site)
        shrunk = torch.bmm(rows[self._rows][:, None], a.transpose(1, 2))
        out.index_add_(0, self._rows, torch.bmm(shrunk, b)[:, 0])

    def _stack(self, site: int) -> tuple[Tensor, Tensor]:
        """The matrices of all adapters, of one rank; kept, because the next steps have the same adapters."""
        if site not in self._stacks:
            shape = self._sites[site]
            dtype = self._units[0][1].dtype
            rank = max(int(adapter.layout[site]["rank"]) for adapter, _, _ in self._units)
            a = torch.zeros(len(self._units), rank, shape.inputs, dtype=dtype, device=self._device)
            b = torch.zeros(len(self._units), rank, shape.outputs, dtype=dtype, device=self._device)
            for unit, (adapter, weights, _) in enumerate(self._units):
                matrices = adapter.matrices(site, shape, weights)
                if matrices is not None:
                    a[unit, : len(matrices[0])] = matrices[0]
                    b[unit, : len(matrices[1])] = matrices[1] * adapter.scale(site)
            self._stacks[site] = a, b
        return self._stacks[site]


class Switch:
    """Looked at by every layer that can have an adapter: whether the forward that runs has a table, and which.

    A compiled graph carries tensors and numbers, no objects: it finds its table under the switch's number.

    Attributes:
        number: that no other switch has.
        on: whether the forward has a table.
    """

    def __init__(self) -> None:
        self.number = id(self)
        self.on = False

    @contextmanager
    def running(self, table: Table) -> Generator[None]:
        """Let the layers find a table."""
        _tables[self.number] = table
        self.on = True
        try:
            yield
        finally:
            self.on = False
            del _tables[self.number]


_tables: dict[int, Table] = {}


def table_of(number: int) -> Table:
    """The table of the forward that runs."""
    return _tables[number]
