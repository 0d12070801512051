"""Packed linear layers compute what plain ones compute, and a packed model says what `generate` says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch import TorchEngine
from aios_kernel.engine.torch.native import linear as products
from aios_kernel.engine.torch.native.layers import NativeLinear
from aios_kernel.engine.torch.packed import PackedLinear, pack_linears


@pytest.fixture
def model() -> Any:
    """A Llama whose layers are large enough to be packed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=384,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=256,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("rows", [1, 2, 7, 33, 200])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_packed_is_plain(rows: int, bias: bool, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(rows)
    block = nn.Sequential(nn.Linear(384, 352, bias=bias)).to(dtype).requires_grad_(False)
    x = torch.randn(1, rows, 384, dtype=dtype)
    plain = block(x)
    pack_linears(block, native=False)
    assert isinstance(block[0], PackedLinear)
    torch.testing.assert_close(block(x), plain, rtol=tolerance, atol=tolerance)


def test_small_layers_and_subclasses_stay() -> None:
    class Special(nn.Linear):
        """Does more than multiply."""

    block = nn.Sequential(nn.Linear(16, 16), Special(512, 512))
    pack_linears(block, native=False)
    assert [type(layer) for layer in block] == [nn.Linear, Special]


@pytest.mark.parametrize("native", [False, True])
def test_a_packed_model_says_what_generate_says(model: LlamaForCausalLM, native: bool) -> None:
    prompts = [torch.randint(0, 512, (length,)).tolist() for length in (3, 17, 40)]
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)[0].tolist()
        for prompt in prompts
    ]
    engine = TorchEngine(model, kv_tokens=1024, native=native)
    kind = NativeLinear if native and products.served(torch.float32) else PackedLinear
    assert any(isinstance(layer, kind) for layer in model.modules())
    contexts = [engine.open(prompt, sampling=SamplingParams()) for prompt in prompts]
    for _ in range(12):
        engine.step([(context, context.pending) for context in contexts])
    assert [context.tokens for context in contexts] == expected
