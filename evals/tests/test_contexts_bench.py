"""`aios bench contexts` on a tiny model: one row an operation, with figures that hang together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aios_evals.contexts import run


def test_rows_hang_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    rows = run(lengths=(64, 160), repeats=2, model=LlamaForCausalLM(config).eval())
    assert [(row["operation"], row["tokens"]) for row in rows] == [
        (operation, length) for length in (64, 160) for operation in ("fork", "snapshot", "restore", "save", "load")
    ]
    for row in rows:
        assert row["bytes"] == row["tokens"] * 2 * 2 * 32 * 4  # layers, keys and values, width, bytes of a float32
        assert 0 <= row["thread_us"] <= row["total_us"]
        assert row["prefill_ratio"] > 0
        on_disk = row["operation"] in {"save", "load"}
        assert (row["disk_ratio"] is not None) == on_disk
        if on_disk:
            assert row["disk_ratio"] == pytest.approx(row["mb_per_s"] / row["disk_mb_per_s"])
    assert list(tmp_path.iterdir()) == []
