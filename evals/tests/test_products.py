"""`aios bench products` on small layers: every kernel of this machine is measured at every number of rows."""

from __future__ import annotations

import pytest

from aios_evals.products import Layers, run


def test_kernels_are_measured() -> None:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    rows = run((1, 20), Layers(hidden=64, kv=32, feed_forward=96, vocab=128, count=1))
    assert torch.get_num_threads() == threads
    for dtype in ("float32", "bfloat16"):
        kernels = {row["kernel"] for row in rows if row["dtype"] == dtype}
        assert "plain" in kernels
        for kernel in kernels:
            found = [row for row in rows if row["dtype"] == dtype and row["kernel"] == kernel]
            assert [row["rows"] for row in found] == [1, 20]
            assert all(row["time_ms"] > 0 and row["gflop_per_s"] > 0 for row in found)
