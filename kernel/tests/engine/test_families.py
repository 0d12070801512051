"""Other architectures, whose attention asks for windows, soft caps and experts: greedy tokens against `generate`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

from aios_kernel.engine.torch import TorchEngine

SMALL = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
CONFIGS = {
    "Mistral": {"sliding_window": 16},
    "Gemma2": {"sliding_window": 16, "head_dim": 12, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 12},
    "Gemma3": {"sliding_window": 16, "head_dim": 12, "query_pre_attn_scalar": 12},
    "Phi3": {},
    "Mixtral": {"num_local_experts": 4, **EXPERTS},
    "Qwen3Moe": {"num_experts": 4, "head_dim": 12, **EXPERTS},
}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_tokens_are_those_of_generate(name: str, oracles: Any, drive: Any, prompt: Any) -> None:
    torch.manual_seed(3)
    config_class = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")
    model = getattr(transformers, f"{name}ForCausalLM")(config_class(**(SMALL | CONFIGS[name]))).eval()
    driver = drive(TorchEngine(copy.deepcopy(model), kv_tokens=2048))
    prompts = [prompt(length) for length in (5, 40, 90)]
    answers = driver.answers([driver.open(tokens) for tokens in prompts], [20, 20, 20], chunk=24)
    oracle = type(oracles("llama"))(model)
    for tokens, answer in zip(prompts, answers, strict=True):
        oracle.check(tokens, answer)
