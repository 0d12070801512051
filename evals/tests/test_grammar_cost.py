"""`aios bench grammar` on a tiny model: real calls are walked, and the figures hang together."""

from __future__ import annotations

import pytest

from aios_evals.grammar_cost import KINDS, run
from aios_evals.replay_model import VOCABULARY


def test_grammars_are_measured() -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    rows = run((5,), walks=1, model=LlamaForCausalLM(config).eval())
    assert [(row["dtype"], row["kind"]) for row in rows] == [
        (dtype, kind) for dtype in ("float32", "bfloat16") for kind in KINDS
    ]
    for row in rows:
        assert row["steps"] > 10
        assert row["forward_us"] > 0
        assert row["share"] == pytest.approx(row["grammar_us"] / row["step_us"])
        assert (row["grammar_us"] == 0) == (row["kind"] == "plain")
