"""A compiled model says what `generate` says; one that cannot be compiled still runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch import TorchEngine
from aios_kernel.engine.torch.compiled import Graph

PROMPTS = [[5, 6, 7], list(range(40)), [9] * 17]


def model() -> Any:
    """Large enough for packed weights."""
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


def answers(engine: TorchEngine, loras: Sequence[str | None] = (None, None, None)) -> list[list[int]]:
    """Twelve tokens of each prompt: first in chunks of 16, then all together, at last one alone."""
    contexts = [
        engine.open(prompt, sampling=SamplingParams(), lora=lora) for prompt, lora in zip(PROMPTS, loras, strict=True)
    ]
    while any(context.pending > 1 for context in contexts):
        engine.step([(context, 16) for context in contexts if context.pending > 1])
    for context in (*contexts, *contexts[:1]):
        while len(context.tokens) < len(PROMPTS[contexts.index(context)]) + 12:
            engine.step([(context, 1)])
    return [context.tokens for context in contexts]


def generated() -> list[list[int]]:
    plain = model()
    return [
        plain.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)[0].tolist()
        for prompt in PROMPTS
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_a_compiled_model_says_what_generate_says() -> None:
    engine = TorchEngine(model(), kv_tokens=1024, compile=True)
    assert engine.compiled
    with torch.compiler.set_stance("fail_on_recompile"):
        assert answers(engine) == generated()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("native", [True, False], ids=["native", "plain"])
def test_a_compiled_model_with_adapters(lora_writer: Callable[..., Path], tmp_path: Path, native: bool) -> None:
    """It says what the plain one says, which the merged models hold to; without adapters its graph is as before."""
    loras = ("a", None, "b")
    engines = [TorchEngine(model(), kv_tokens=4096, compile=compile, native=native) for compile in (True, False)]
    for name in ("a", "b"):
        folder = lora_writer(tmp_path / name, model(), rank=6, seed=ord(name))
        for engine in engines:
            engine.load_lora(name, str(folder))
    assert engines[0].compiled
    with torch.compiler.set_stance("fail_on_recompile"):
        assert answers(engines[0], loras) == answers(engines[1], loras)
        assert answers(engines[0], ("a", "a", "a")) == answers(engines[1], ("a", "a", "a"))
        assert answers(engines[0]) == generated()
    assert engines[0]._runner._compiled_adapted is not None


def test_a_model_that_cannot_be_compiled_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler(function: Callable[..., Any], **_options: Any) -> Callable[..., Any]:
        def compiled(*_arguments: Any) -> Any:
            raise RuntimeError("no C++ compiler")

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    engine = TorchEngine(model(), kv_tokens=1024, compile=True)
    assert not engine.compiled
    assert answers(engine) == generated()


def test_a_graph_that_would_ignore_an_input_is_refused() -> None:
    """What it was given as a weight would be the same in every step."""
    ids, positions, rows = torch.arange(5), torch.arange(5), torch.arange(3)
    weight = torch.zeros(2)

    def run(*arguments: Any) -> list[Any]:
        return [arguments]

    inputs = (ids, positions, rows, 77)
    graph = Graph(run, [weight, 5, ids, 3, positions.view(5), positions, 77, rows], inputs)
    assert graph(ids[:2], positions[:2], rows[:1], 78)[1] == 2
    with pytest.raises(ValueError, match="does not take its inputs"):
        Graph(run, [weight, 5, ids, positions.clone(), 77, rows], inputs)
    with pytest.raises(ValueError, match="none of its inputs"):
        Graph(run, [weight, 5, ids, positions, 77, rows, 4], inputs)
