"""Mixtures whose experts are in a cache: loading, exactness at every size, int8, and what goes wrong.

That they say what `generate` says in every situation is tested with the other families (`test_families.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch import TorchEngine
from aios_kernel.engine.torch.experts.checkpoint import ExpertFiles
from aios_kernel.engine.torch.experts.forms import ExpertShape, int8_bytes
from aios_kernel.engine.torch.experts.loading import mixture_of
from aios_kernel.errors import ConfigError, EngineError, Unsupported

FAMILY = "qwen3_moe_cached"
SHAPE = ExpertShape(count=16, hidden=48, width=32)
LAYERS = 3
GREEDY = SamplingParams()
Load = Callable[..., Any]


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def logits(model: Any, prompt: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([prompt])).logits[0]


def answer(engine: TorchEngine, prompt: list[int], n_tokens: int) -> list[int]:
    context = engine.open(prompt, sampling=GREEDY)
    while len(context.tokens) < len(prompt) + n_tokens:
        (output,) = engine.step([(context, 64)])
        assert output.error is None, output.error
    return context.tokens[len(prompt) :]


def test_experts_stay_in_their_files(load_cached: Load, oracles: Any) -> None:
    model = load_cached(FAMILY, 0.5)
    whole = oracles(FAMILY).model.num_parameters()
    assert whole - model.num_parameters() == LAYERS * SHAPE.count * SHAPE.numbers
    status = mixture_of(model).status()
    assert (status.bytes_read, status.resident) == (0, 0)
    assert status.all_bytes == LAYERS * SHAPE.count * SHAPE.numbers * 4
    assert status.cache_bytes == status.all_bytes // 2


def test_logits_are_the_same_to_the_bit_at_every_size(load_cached: Load, prompt: Any) -> None:
    expected = logits(load_cached(FAMILY, 1.0), prompt(50))
    for cache in (SHAPE.numbers * 4, 0.1, 0.6):
        model = load_cached(FAMILY, cache)
        assert torch.equal(logits(model, prompt(50)), expected)
        status = mixture_of(model).status()
        assert status.used_bytes <= status.cache_bytes


def test_a_snapshot_goes_on_with_another_size(load_cached: Load, oracles: Any, prompt: Any, tmp_path: Path) -> None:
    one, two = (TorchEngine(load_cached(FAMILY, cache), kv_tokens=512) for cache in (0.1, 0.7))
    assert one.fingerprint == two.fingerprint
    context = one.open(prompt(30), sampling=GREEDY)
    while len(context.tokens) < 36:
        one.step([(context, 20)])
    one.snapshot(context).save(tmp_path / "snapshot")
    back = two.restore(two.load_snapshot(tmp_path / "snapshot"))
    while len(back.tokens) < 45:
        two.step([(back, 1)])
    oracles(FAMILY).check(prompt(30), back.tokens[30:])


def test_other_experts_are_another_fingerprint(load_cached: Load, checkpoint: Any, tmp_path: Path) -> None:
    engine = TorchEngine(load_cached(FAMILY, 0.5), kv_tokens=64)
    weights = load_file(checkpoint(FAMILY) / "model.safetensors")
    name = next(name for name in weights if ".experts." in name)
    weights[name] += 1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    files = ExpertFiles(tmp_path, range(LAYERS), SHAPE)
    assert files.digest() not in engine._experts.stored.fingerprint
    files.close()


def test_bfloat16_files_for_a_float32_model(checkpoint: Any, load_cached: Load, tmp_path: Path, prompt: Any) -> None:
    from aios_kernel.engine._source import Source
    from aios_kernel.engine.expert_options import ExpertOptions
    from aios_kernel.engine.load import _weights

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(FAMILY), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    options = ExpertOptions(0.2)
    cached = _weights(Source(tmp_path, "x"), config, torch.device("cpu"), torch.float32, options)
    torch.testing.assert_close(logits(cached, prompt(20)), logits(model.float(), prompt(20)), atol=1e-4, rtol=1e-4)
    mixture_of(cached).close()


# --- checkpoints ----------------------------------------------------------------------------------------------------


def fused(folder: Path, target: Path) -> None:
    """The same experts, all of a layer in one tensor."""
    weights, made = load_file(folder / "model.safetensors"), {}
    for layer in range(LAYERS):
        base = f"model.layers.{layer}.mlp.experts"
        parts = {
            part: torch.stack([weights.pop(f"{base}.{expert}.{part}_proj.weight") for expert in range(SHAPE.count)])
            for part in ("gate", "up", "down")
        }
        made[f"{base}.gate_up_proj"] = torch.cat([parts["gate"], parts["up"]], dim=1).contiguous()
        made[f"{base}.down_proj"] = parts["down"].contiguous()
    save_file(weights | made, target / "model.safetensors", metadata={"format": "pt"})


def test_fused_and_split_experts_are_read_alike(checkpoint: Any, tmp_path: Path) -> None:
    fused(checkpoint(FAMILY), tmp_path)
    one, two = (ExpertFiles(folder, range(LAYERS), SHAPE) for folder in (checkpoint(FAMILY), tmp_path))
    for number in range(LAYERS * SHAPE.count):
        pieces = [bytearray(files.stored_bytes(number)) for files in (one, two)]
        for files, piece in zip((one, two), pieces, strict=True):
            files.read(number, memoryview(piece))
        assert pieces[0] == pieces[1]
    one.close()
    two.close()
    with pytest.raises(OSError, match="closed"):
        one.read(0, memoryview(bytearray(8)))


def rewritten(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


NAME = "model.layers.1.mlp.experts.5.up_proj.weight"


def _without(weights: dict[str, torch.Tensor]) -> None:
    del weights[NAME]


def _smaller(weights: dict[str, torch.Tensor]) -> None:
    weights[NAME] = weights[NAME][:-1].contiguous()


def _half(weights: dict[str, torch.Tensor]) -> None:
    weights[NAME] = weights[NAME].half()


def _otherwise(weights: dict[str, torch.Tensor]) -> None:
    for name in [name for name in weights if ".experts." in name]:
        weights[name.replace(".experts.", ".specialists.")] = weights.pop(name)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (_without, ConfigError, "expert 5 of layer 1 is missing"),
        (_smaller, ConfigError, r"shape \[31, 48\], the configuration says \[32, 48\]"),
        (_half, Unsupported, "dtype F16, F32"),
        (_otherwise, Unsupported, "are not stored as"),
    ],
)
def test_checkpoints_that_do_not_fit(
    checkpoint: Any, tmp_path: Path, change: Any, kind: type[Exception], message: str
) -> None:
    folder = rewritten(checkpoint(FAMILY), tmp_path, change)
    with pytest.raises(kind, match=message) as caught:
        ExpertFiles(folder, range(LAYERS), SHAPE)
    assert caught.value.fix  # type: ignore[attr-defined]


def test_models_without_experts_and_caches_without_room(load_cached: Load, checkpoint: Any) -> None:
    with pytest.raises(ConfigError, match="no mixture of experts"):
        load_cached("llama", 0.5)
    with pytest.raises(ConfigError, match="holds no expert"):
        load_cached(FAMILY, 1000)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_file_that_was_cut_fails_the_call_and_not_the_engine(
    load_cached: Load, oracles: Any, prompt: Any, tmp_path: Path
) -> None:
    engine = TorchEngine(load_cached(FAMILY, 0.1), kv_tokens=512)
    (tmp_path / "cut").write_bytes(bytes(1000))
    cut, file = os.open(tmp_path / "cut", os.O_RDONLY), engine._experts.stored.store._files[0]
    whole = os.dup(file)
    context, other = engine.open(prompt(20), sampling=GREEDY), engine.open(prompt(33), sampling=GREEDY)
    try:
        os.dup2(cut, file)
        outputs = engine.step([(context, 64), (other, 64)])
    finally:
        os.dup2(whole, file)
        os.close(whole)
        os.close(cut)
    for output in outputs:
        assert isinstance(output.failure, EngineError)
        assert "ends at byte" in str(output.error)
    assert engine.expert_status().failed_reads > 0
    oracles(FAMILY).check(prompt(20), answer(engine, prompt(20), 8))
    for each in (context, other):
        engine.release(each)


# --- int8 -----------------------------------------------------------------------------------------------------------


def test_cold_experts_in_int8_lose_what_is_told(load_cached: Load, oracles: Any, prompt: Any) -> None:
    model = load_cached(FAMILY, 0.3, int8=0.5)
    status = mixture_of(model).status()
    assert status.int8_experts == LAYERS * SHAPE.count // 2
    assert 0 < status.int8_logit_difference < 2
    assert 1 < status.int8_perplexity_ratio < 1.1
    difference = (logits(model, prompt(64)) - logits(oracles(FAMILY).model, prompt(64))).abs().max()
    assert 0 < difference < 4 * status.int8_logit_difference


def test_int8_is_computed_alike_at_every_size_and_start(load_cached: Load, prompt: Any) -> None:
    first = load_cached(FAMILY, 0.3, int8=0.5)
    expected = logits(first, prompt(50))
    smallest = SHAPE.numbers * 4
    for cache in (smallest, 0.2, 1.0):
        again = load_cached(FAMILY, cache, int8=0.5)
        assert torch.equal(logits(again, prompt(50)), expected)
        assert mixture_of(again).stored.fingerprint == mixture_of(first).stored.fingerprint
        assert mixture_of(again).status().int8_logit_difference == mixture_of(first).status().int8_logit_difference
        assert mixture_of(again).cache.taken_bytes <= mixture_of(again).cache.budget
    assert mixture_of(load_cached(FAMILY, 0.3)).stored.fingerprint != mixture_of(first).stored.fingerprint


def test_the_file_of_cold_experts_is_private_small_and_made_anew_when_damaged(
    load_cached: Load, tmp_path: Path, prompt: Any
) -> None:
    expected = logits(load_cached(FAMILY, 0.3, int8=0.25), prompt(30))
    (path,) = (tmp_path / "cache" / "aios" / "experts").glob("*.safetensors")
    assert path.stat().st_mode & 0o077 == 0
    assert load_file(path)["experts"].shape == (LAYERS * SHAPE.count // 4, int8_bytes(SHAPE))
    path.write_bytes(path.read_bytes()[:-100])
    assert torch.equal(logits(load_cached(FAMILY, 0.3, int8=0.25), prompt(30)), expected)
    assert json.loads(path.with_suffix(".json").read_text())["tokens"] > 100
