"""Vectors from the loaded model are the mean of its hidden states, however the texts are cut into forwards."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from aios_kernel.engine.torch import TorchEngine
from aios_kernel.errors import EngineError


def reference(model: Any, tokens: list[int]) -> list[float]:
    with torch.inference_mode():
        hidden = model.base_model(torch.tensor([tokens])).last_hidden_state[0]
    return torch.nn.functional.normalize(hidden.mean(dim=0), dim=0).tolist()


@pytest.mark.parametrize("max_step_tokens", [24, 2048])
def test_vectors_are_those_of_the_plain_model(oracle: Any, prompt: Any, max_step_tokens: int) -> None:
    engine = TorchEngine(copy.deepcopy(oracle.model), kv_tokens=64, max_step_tokens=max_step_tokens)
    texts = [prompt(length) for length in (3, 10, 9, 100, 17, 1)]
    forwards = list(engine.embed(texts))
    assert len(forwards) == (7 if max_step_tokens == 24 else 1)  # 22 tokens, 100 in five parts, 18
    vectors = [vector for done in forwards for vector in done]
    for tokens, vector in zip(texts, vectors, strict=True):
        assert vector == pytest.approx(reference(oracle.model, tokens), abs=2e-5)


def test_what_cannot_be_embedded_is_told(make_engine: Any, prompt: Any) -> None:
    engine = make_engine()
    with pytest.raises(ValueError, match="at least one token"):
        engine.embed([prompt(3), []])
    with pytest.raises(ValueError, match="9999 is not of this model"):
        engine.embed([[9999]])
    with torch.no_grad():
        engine._runner.model.get_input_embeddings().weight[7] = float("nan")
    with pytest.raises(EngineError, match="not finite"):
        list(engine.embed([[7, 8]]))
