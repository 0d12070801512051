"""`aios bench roofline`: the work of a step is counted as the model says, and every setting is measured against it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios_evals.engine_bench.shapes import SHAPES, ensure
from aios_evals.roofline import Ceilings, Work, decode_work, prefill_work, run


def test_the_work_is_that_of_the_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(ensure(tmp_path, "1m"))
    products = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name)
    config = model.config
    kv = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 96
    assert decode_work(SHAPES["1m"], 1, 4).read == (products + kv) * 4
    assert decode_work(SHAPES["1m"], 8, 2).read == (products + 8 * kv) * 2
    one, two = prefill_work(SHAPES["1m"], 64, 4), prefill_work(SHAPES["1m"], 128, 4)
    assert one.read == two.read
    assert two.flop > 2 * one.flop - 2 * products  # attention grows with the square


def test_the_larger_need_bounds() -> None:
    ceilings = Ceilings(bytes_per_s=10.0, flop_per_s=100.0)
    assert Work(read=20.0, flop=100.0).bound_s(ceilings) == 2.0
    assert Work(read=20.0, flop=400.0).bound_s(ceilings) == 4.0


def test_every_setting_is_measured(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    rows = run(tmp_path, "1m", ("bfloat16",), (1, 2), (1, 2), compile=False)
    assert torch.get_num_threads() == before
    assert [(row["work"], row["batch"], row["threads"]) for row in rows] == [
        ("decode", 1, 1), ("decode", 2, 1), ("prefill", 1, 1), ("decode", 1, 2), ("decode", 2, 2), ("prefill", 1, 2),
    ]  # fmt: skip
    assert all(row["bound_ms"] > 0 and row["share"] > 0 for row in rows)
