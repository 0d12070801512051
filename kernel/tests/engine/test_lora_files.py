"""What an adapter's files may hold, and what a user is told of those that cannot be served."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from aios_kernel.engine.torch.lora.config import LoraConfig, read_config
from aios_kernel.errors import AiosError, ConfigError, UnknownModel, Unsupported


@pytest.fixture
def engine(make_engine: Callable[..., Any]) -> Any:
    return make_engine()


def edit(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refused(engine: Any, folder: Path, kind: type[AiosError], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        engine.load_lora("mine", str(folder))
    assert caught.value.fix
    assert not engine.loras()


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trained tokens"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"rank_pattern": {"(a+)+q_proj": 4}}, "take for ever"),
    ],
)
def test_other_kinds_are_refused_by_name(engine: Any, lora_folder: Any, values: dict[str, Any], what: str) -> None:
    folder = lora_folder()
    edit(folder, **values)
    refused(engine, folder, Unsupported, what)


@pytest.mark.parametrize("values", [{"init_lora_weights": "gaussian"}, {"init_lora_weights": False}, {"unheard": 1}])
def test_what_does_not_matter_is_let_pass(engine: Any, lora_folder: Any, values: dict[str, Any]) -> None:
    folder = lora_folder()
    edit(folder, **values)
    engine.load_lora("mine", str(folder))
    assert [*engine.loras()] == ["mine"]


def test_layers_that_are_no_linear_layers_of_the_model(engine: Any, lora_folder: Any) -> None:
    for key in ("base_model.model.lm_head.lora_A.weight", "base_model.model.model.embed_tokens.lora_embedding_A",
                "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "something"):  # fmt: skip
        folder = lora_folder(seed=hash(key))
        retensor(folder, lambda tensors, key=key: tensors.update({key: torch.zeros(8, 48)}))
        refused(engine, folder, Unsupported, "no linear layer")


def test_an_adapter_of_another_model(engine: Any, lora_writer: Any, tmp_path: Path) -> None:
    other = LlamaForCausalLM(LlamaConfig(vocab_size=9, hidden_size=32, intermediate_size=64, num_hidden_layers=1))
    refused(engine, lora_writer(tmp_path, other), ConfigError, "this model wants")


def test_damaged_files(engine: Any, lora_folder: Any, tmp_path: Path) -> None:
    refused(engine, tmp_path, ConfigError, r"no adapter_model\.safetensors")
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    refused(engine, tmp_path, ConfigError, r"adapter_model\.bin \(other formats can run code")
    folder = lora_folder(seed=1)
    (folder / "adapter_config.json").write_text("{")
    refused(engine, folder, ConfigError, "cannot be read")
    folder = lora_folder(seed=2)
    edit(folder, r="eight")
    refused(engine, folder, ConfigError, "cannot be read")
    edit(folder, r=8, rank_pattern={"q_proj": 0})
    refused(engine, folder, ConfigError, "rank below 1")
    edit(folder, rank_pattern={"q_proj(": 2})
    refused(engine, folder, ConfigError, "wrong pattern")
    edit(folder, rank_pattern={}, r=4)
    refused(engine, folder, ConfigError, r"\[8, 48\]")
    folder = lora_folder(seed=3)
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    refused(engine, folder, ConfigError, "cannot be read")
    folder = lora_folder(seed=4)
    (folder / "adapter_config.json").unlink()
    refused(engine, folder, ConfigError, r"no adapter_config\.json")
    folder = lora_folder(seed=5)
    retensor(folder, lambda tensors: next(iter(tensors.values()))[0].fill_(math.nan))
    refused(engine, folder, ConfigError, "not finite")
    folder = lora_folder(seed=6)
    retensor(folder, lambda tensors: tensors.pop(next(iter(tensors))))
    refused(engine, folder, ConfigError, "is missing")
    folder = lora_folder(seed=7)
    retensor(folder, lambda tensors: tensors.clear())
    refused(engine, folder, ConfigError, "no weights")


def test_no_such_folder(engine: Any) -> None:
    refused(engine, Path("/nowhere/at/all"), UnknownModel, "no folder")


def test_scales_as_peft_has_them(tmp_path: Path) -> None:
    config = LoraConfig("LORA", r=16, lora_alpha=8, rank_pattern={"q_proj": 4}, alpha_pattern={"layers.1.*v_proj": 64})
    assert config.scale("model.layers.0.self_attn.k_proj") == 0.5
    assert config.scale("model.layers.0.self_attn.q_proj") == 2
    assert config.scale("model.layers.1.self_attn.v_proj") == 4
    assert config.scale("model.layers.2.self_attn.v_proj") == 0.5
    assert config.rank("model.layers.0.self_attn.eq_proj") == 16
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 16, "lora_alpha": 8, "use_rslora": true}')
    assert read_config(tmp_path).scale("model.layers.0.self_attn.k_proj") == 2
