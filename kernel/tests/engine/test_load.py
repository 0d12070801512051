"""Loading: what works, and what a user is told when it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from aios_kernel.engine.load import load_model
from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.errors import ConfigError, UnknownModel, Unsupported
from aios_kernel.syscalls import LlmChat, Message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>").save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=288,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=256,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_serves_a_chat(folder: Path) -> None:
    model = load_model(str(folder), device="cpu", kv_tokens=1024)
    assert model.name == folder.name
    assert model.codec.window == 512
    assert model.engine.capabilities.kv_tokens == 1024
    prompt = model.codec.encode_chat(LlmChat(messages=[Message(role="user", content="héllo")]))
    context = model.engine.open(prompt, sampling=SamplingParams())
    (output,) = model.engine.step([(context, 100)])
    assert output.token is not None


def test_bfloat16_is_another_fingerprint(folder: Path) -> None:
    one, two = (load_model(str(folder), device="cpu", dtype=dtype, kv_tokens=64) for dtype in ("auto", "bf16"))
    assert one.engine.fingerprint != two.engine.fingerprint
    again = load_model(str(folder), device="cpu", kv_tokens=64)
    assert one.engine.fingerprint == again.engine.fingerprint


def test_no_such_folder() -> None:
    with pytest.raises(UnknownModel, match="no folder") as caught:
        load_model("./nowhere")
    assert caught.value.fix


def test_no_such_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnknownModel, match="nobody/nothing") as caught:
        load_model("nobody/nothing")
    assert "network" in str(caught.value)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_model(str(tmp_path))


def test_a_folder_without_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="no safetensors"):
        load_model(str(folder))


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(Unsupported, match="is a file"):
        load_model(str(folder / "config.json"))


def test_incomplete_weights(folder: Path) -> None:
    edit(folder, num_hidden_layers=3)
    with pytest.raises(ConfigError, match="incomplete"):
        load_model(str(folder), device="cpu")


def test_an_encoder_is_not_served(folder: Path) -> None:
    edit(folder, architectures=["BertModel"], model_type="bert")
    with pytest.raises(Unsupported, match="BertModel"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "values", [{"model_type": "unheard_of"}, {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}]
)
def test_code_outside_transformers_is_not_run(folder: Path, values: dict[str, Any]) -> None:
    edit(folder, **values)
    (folder / "code.py").write_text("raise SystemExit('this must never run')")
    with pytest.raises(Unsupported, match="transformers"):
        load_model(str(folder))


def test_state_outside_attention_is_refused(folder: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=288, hidden_size=16, state_size=4, num_hidden_layers=1, eos_token_id=256)
    MambaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(Unsupported, match="Mamba"):
        load_model(str(folder), device="cpu")


def test_no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match="tokenizer"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "tpu"),
        ({"device": "meta"}, "meta"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"dtype": "int3"}, "int3"),
        ({"kv_tokens": 3}, "no room"),
        ({"kv_tokens": 1 << 50}, "GiB"),
    ],
)
def test_impossible_options(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(str(folder), **({"device": "cpu"} | options))
    assert caught.value.fix


def test_scaled_rotary_positions_keep_the_exact_window(folder: Path) -> None:
    edit(
        folder,
        rope_parameters={
            "rope_type": "dynamic",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    )
    assert load_model(str(folder), device="cpu", kv_tokens=64).codec.window == 128
