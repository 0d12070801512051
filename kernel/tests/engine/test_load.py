"""Loading: what works, and what a user is told when it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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


def split(folder: Path) -> list[Path]:
    """Shard the weights of a folder."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    return sorted(folder.glob("model-*.safetensors"))


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


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_model(str(tmp_path))


def test_a_folder_without_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no safetensors.*pytorch_model\.bin") as caught:
        load_model(str(folder))
    assert "save_pretrained" in str(caught.value)


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(Unsupported, match="is a file"):
        load_model(str(folder / "config.json"))


def test_a_sharded_checkpoint(folder: Path) -> None:
    whole = load_model(str(folder), device="cpu", kv_tokens=64)
    assert len(split(folder)) > 2
    assert load_model(str(folder), device="cpu", kv_tokens=64).engine.fingerprint == whole.engine.fingerprint


def test_a_missing_shard(folder: Path) -> None:
    shards = split(folder)
    shards[1].unlink()
    with pytest.raises(ConfigError, match=rf"misses 1 of its {len(shards)} files.*{shards[1].name}"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../other.safetensors", ""])
def test_an_index_of_other_files(folder: Path, name: str) -> None:
    split(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(ConfigError, match="no safetensors file"):
        load_model(str(folder))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}'])
def test_a_damaged_index(folder: Path, text: str) -> None:
    split(folder)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ConfigError, match=r"index\.json") as caught:
        load_model(str(folder))
    assert caught.value.fix


def _cut(data: bytes) -> bytes:
    return data[:-7]


def _huge_header(data: bytes) -> bytes:
    return (1 << 60).to_bytes(8, "little") + data[8:]


def _moved_offsets(data: bytes) -> bytes:
    return data.replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1)


def _no_header(data: bytes) -> bytes:
    return b"\x80\x04" + data[2:]  # how a pickle begins


@pytest.mark.parametrize("tamper", [_cut, _huge_header, _moved_offsets, _no_header])
def test_tampered_weights(folder: Path, tamper: Callable[[bytes], bytes]) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(tamper(data))
    assert path.read_bytes() != data
    with pytest.raises(ConfigError, match="damaged") as caught:
        load_model(str(folder))
    assert caught.value.fix


def test_weights_of_another_shape(folder: Path) -> None:
    edit(folder, hidden_size=64)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_quantised_weights_are_refused(folder: Path, method: str) -> None:
    edit(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(Unsupported, match=f"quantised .{method}") as caught:
        load_model(str(folder))
    assert caught.value.fix


def test_no_chat_template_is_told_and_replaced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load_model(str(folder), device="cpu", kv_tokens=64)
    assert "no chat template" in caplog.text
    assert "anyone" in model.codec.decode(model.codec.encode_chat(LlmChat(messages=[Message("user", "anyone")])))


def test_the_models_own_template_is_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    model = load_model(str(folder), device="cpu", kv_tokens=64)
    assert "no chat template" not in caplog.text
    assert model.codec.decode(model.codec.encode_chat(LlmChat(messages=[Message("user", "me")]))) == "[me]"


def test_incomplete_weights(folder: Path) -> None:
    edit(folder, num_hidden_layers=3)
    with pytest.raises(ConfigError, match="incomplete"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("model_type", "name", "kind"),
    [("bert", "BertModel", "no causal"), ("t5", "T5ForConditionalGeneration", "encoder-decoder")],
)
def test_other_kinds_of_model_are_not_served(folder: Path, model_type: str, name: str, kind: str) -> None:
    edit(folder, architectures=[name], model_type=model_type)
    with pytest.raises(Unsupported, match=rf"{kind}.*{name}"):
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
        ({"revision": "main"}, "revision"),
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
