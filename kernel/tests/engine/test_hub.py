"""Models by their Hugging Face id, from the hub's cache on this machine; nothing here reaches a network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aios_kernel.engine._source import locate
from aios_kernel.engine.load import DEMO, load_model
from aios_kernel.errors import ConfigError, UnknownModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
TINY = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one model, as the hub's client lays it out."""
    repository = tmp_path / "models--someone--tiny"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(DEMO, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return repository


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(params=[offline, unreachable])
def cut_off(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    cut: Callable[[pytest.MonkeyPatch], None] = request.param
    cut(monkeypatch)


@pytest.mark.usefixtures("cut_off")
def test_a_cached_model_is_served(cache: Path) -> None:
    model = load_model("someone/tiny", device="cpu", kv_tokens=64)
    assert model.name == "someone/tiny"
    assert model.engine.fingerprint == load_model("demo", device="cpu", kv_tokens=64).engine.fingerprint


@pytest.mark.usefixtures("cut_off")
def test_a_model_that_is_not_cached(cache: Path) -> None:
    with pytest.raises(UnknownModel, match=r"nobody/nothing.*cannot be reached") as caught:
        load_model("nobody/nothing")
    assert "network" in str(caught.value)


def test_revisions(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    other = cache / "snapshots" / OTHER
    shutil.copytree(DEMO, other)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(other)
    (cache / "refs" / "v2").write_text(OTHER)
    assert locate("someone/tiny", None).folder.name == locate("someone/tiny", "main").folder.name == COMMIT
    assert locate("someone/tiny", "v2").folder.name == locate("someone/tiny", OTHER).folder.name == OTHER
    with pytest.raises(UnknownModel, match='at revision "v3"'):
        locate("someone/tiny", "v3")


def test_a_download_that_broke_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    (cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no safetensors weights"):
        load_model("someone/tiny")
