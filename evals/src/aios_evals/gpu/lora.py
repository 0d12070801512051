"""Many adapters in one batch, if the engine serves any."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aios_evals.gpu.bench import GREEDY, Row, Subject, prefill, released
from aios_evals.gpu.ceilings import settle
from aios_kernel.engine.torch import TorchEngine

_RANK = 8
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def loras(subject: Subject) -> Iterator[Row]:
    """Decode steps of one batch: without adapters, all with one, each with its own."""
    engine: Any = subject.engine()
    if not (engine.capabilities.lora and hasattr(engine, "load_lora")):
        yield {"note": "this engine serves no LoRA"}
        return
    counts, batch = subject.bench.sizes.loras
    base = _step_s(engine, subject, [None] * batch)
    yield {"loras": 0, "batch": batch, "rank": 0, "step_ms": base * 1e3, "ratio_to_base": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        names = [_adapter(subject, Path(folder), number) for number in range(max(counts))]
        for count in counts:
            seconds = _step_s(engine, subject, [names[row % count] for row in range(batch)])
            ratio = seconds / base
            yield {"loras": count, "batch": batch, "rank": _RANK, "step_ms": seconds * 1e3, "ratio_to_base": ratio}
            subject.bench.check_time()


def _step_s(engine: TorchEngine, subject: Subject, names: list[str | None]) -> float:
    vocab = engine.capabilities.vocab
    contexts = [
        engine.open([*range(8, 40), row % (vocab - 8) + 8], sampling=GREEDY, lora=name)
        for row, name in enumerate(names)
    ]
    prefill(engine, contexts)
    plan, times = [(context, 1) for context in contexts], list[float]()
    for _ in range(subject.bench.sizes.steps):
        settle(subject.bench.device)
        began = time.perf_counter()
        engine.step(plan)
        times.append(time.perf_counter() - began)
    released(engine, contexts)
    return statistics.median(times)


def _adapter(subject: Subject, folder: Path, number: int) -> str:
    """A random adapter on the attention's layers, in PEFT's format, loaded under a name."""
    import json

    import torch
    from safetensors.torch import save_file

    place = folder / f"lora-{number}"
    place.mkdir()
    source = torch.Generator().manual_seed(number)
    weights: dict[str, Any] = {}
    for layer, (name, inputs, outputs) in _linears(subject.shape.config(tiny=subject.bench.tiny)):
        stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
        weights[f"{stem}.lora_A.weight"] = torch.randn(_RANK, inputs, generator=source) * 0.02
        weights[f"{stem}.lora_B.weight"] = torch.randn(outputs, _RANK, generator=source) * 0.02
    save_file(weights, place / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _RANK, "target_modules": list(_TARGETS), "bias": "none"}
    (place / "adapter_config.json").write_text(json.dumps(config))
    engine: Any = subject.engine()
    engine.load_lora(place.name, str(place))
    return place.name


def _linears(config: Any) -> Iterator[tuple[int, tuple[str, int, int]]]:
    """The attention's linear layers with their inputs and outputs."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    query, pairs = config.num_attention_heads * dim, config.num_key_value_heads * dim
    for layer in range(config.num_hidden_layers):
        yield layer, ("q_proj", config.hidden_size, query)
        yield layer, ("k_proj", config.hidden_size, pairs)
        yield layer, ("v_proj", config.hidden_size, pairs)
        yield layer, ("o_proj", query, config.hidden_size)
