"""32k tokens: prefilled in chunks, exact at the end, within bounded memory."""

from __future__ import annotations

import copy
import random
import resource
import sys
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch import TorchEngine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LENGTH = 32_768
CHUNK = 2048
WORK_BYTES = 400 << 20
"""What a chunk may take beside the KV pool: the mask of 2,048 rows over 32k tokens is 256 MiB of it."""


@pytest.fixture(scope="module")
def deep_model() -> Any:
    """As deep as the 34 M model of the benches and a quarter as wide: the plain forward ends within a minute."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=LENGTH + 1024,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_exact_at_the_end_and_bounded_in_memory(deep_model: Any, drive: Any) -> None:
    chooser = random.Random(0)
    tokens = [chooser.randrange(512) for _ in range(LENGTH)]
    driver = drive(TorchEngine(copy.deepcopy(deep_model), kv_tokens=LENGTH + 256))
    kv_bytes = driver.engine.capabilities.kv_tokens * 8 * 2 * 64 * 4
    before = peak_bytes()
    context = driver.open(tokens)
    while context.computed < LENGTH:
        (output,) = driver.engine.step([(context, CHUNK)])
        assert output.error is None
    answer = [output.token, *driver.answer(context, 3)]
    assert peak_bytes() - before < kv_bytes + WORK_BYTES
    # A second context with the same prompt has nothing to prefill.
    again = driver.engine.open(tokens, sampling=SamplingParams())
    assert again.cached == LENGTH - 16
    driver.engine.release(again)
    with torch.inference_mode():
        logits = deep_model(torch.tensor([[*tokens, *answer[:-1]]]), logits_to_keep=len(answer)).logits[0]
    for token, row in zip(answer, logits, strict=True):
        best = row.topk(2)
        assert token == best.indices[0] or best.values[0] - best.values[1] <= 1e-3
