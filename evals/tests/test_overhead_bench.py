"""`aios bench overhead` on a tiny model: every road does the same work, and the figures hang together."""

from __future__ import annotations

import random

import pytest

from aios_evals.overhead_bench.run import PATHS, interval, run
from aios_evals.replay_model import VOCABULARY


def test_the_interval_has_the_median_in_nineteen_of_twenty_samples() -> None:
    chooser = random.Random(4)
    samples = [[chooser.random() for _ in range(15)] for _ in range(2000)]
    held = sum(low <= 0.5 <= high for low, high in map(interval, samples))
    assert 0.95 <= held / 2000 < 0.99
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)  # too few to leave any out


@pytest.mark.slow
def test_all_roads_do_the_same_work() -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=2,
    )
    rows = run(batch=3, rounds=2, dtypes=["float32"], model=LlamaForCausalLM(config).eval(), compile=False)
    assert [row["path"] for row in rows] == [*PATHS]
    for row in rows:
        assert row["rounds"] == 2
        assert row["tokens_per_cpu_s"] > 0
        assert 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["ttft_ms"] > 0
    assert rows[0]["ratio"] == 1.0
    assert rows[0]["ttft_later_ms"] == 0.0
    assert rows[1]["ratio_to_text"] == 1.0
