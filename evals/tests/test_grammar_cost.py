"""The measurement of grammars walks real calls."""

from __future__ import annotations

import pytest

from aios_evals.grammar_cost import as_row, measure


def test_grammars_are_measured() -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from aios_kernel.engine.load import load_model

    model = load_model("demo", device="cpu", kv_tokens=64)
    cost = measure(model.codec, model.engine.capabilities.vocab, batch=4, walks=1)
    row = as_row(cost, step_s=1.0)
    assert row["batch"] == 4
    assert min(cost.followed_s, cost.steered_s) > 0
    model.engine.close()
