"""Models by their Hugging Face id, from the hub's cache or from a hub on loopback; nothing here reaches a network."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from aios_kernel.engine._lora_source import locate_lora
from aios_kernel.engine._source import locate
from aios_kernel.engine.load import DEMO, load_model
from aios_kernel.errors import ConfigError, UnknownModel, Unsupported

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


class Hub:
    """A hub with one repository, on loopback; it remembers which files were fetched."""

    def __init__(self, folder: Path) -> None:
        self.fetched: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                path = urlsplit(self.path).path
                names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
                if path == "/api/models/someone/new/revision/main":
                    return self._send(json.dumps({"id": "someone/new", "sha": COMMIT}).encode(), body)
                if path == f"/api/models/someone/new/tree/{COMMIT}":
                    entries = [
                        {"type": "file", "path": name, "size": (folder / name).stat().st_size, "oid": _oid(name)}
                        for name in names
                    ]
                    return self._send(json.dumps(entries).encode(), body)
                name = path.removeprefix(f"/someone/new/resolve/{COMMIT}/")
                if name in names:
                    if body:
                        hub.fetched.append(name)
                    return self._send((folder / name).read_bytes(), body, name)
                self.send_response(404)
                self.send_header("x-error-code", "EntryNotFound" if "resolve" in path else "RepoNotFound")
                self.send_header("content-length", "0")
                self.end_headers()

            def _send(self, data: bytes, body: bool, name: str = "") -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.send_header("x-repo-commit", COMMIT)
                self.send_header("etag", f'"{_oid(name)}"')
                self.end_headers()
                if body:
                    self.wfile.write(data)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def _oid(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[tuple[Hub, Path], None, None]:
    folder = tmp_path / "repository"
    shutil.copytree(DEMO, folder)
    made = Hub(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", made.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setenv("NO_PROXY", "*")
    yield made, folder
    made.stop()


def test_a_model_is_downloaded_once_and_no_more_than_is_needed(hub: tuple[Hub, Path]) -> None:
    served, folder = hub
    (folder / "pytorch_model.bin").write_bytes(b"another format")
    (folder / "consolidated.safetensors").write_bytes(b"the same once more")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    model = load_model("someone/new", device="cpu", kv_tokens=64)
    assert model.engine.fingerprint == load_model("demo", device="cpu", kv_tokens=64).engine.fingerprint
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(served.fetched)
    assert not {"pytorch_model.bin", "consolidated.safetensors", "onnx/config.json"} & set(served.fetched)
    before = list(served.fetched)
    locate("someone/new", None)
    assert served.fetched == before


def test_a_sharded_model_is_downloaded_whole(hub: tuple[Hub, Path]) -> None:
    served, folder = hub
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="2MB")
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    assert len(shards) > 1
    locate("someone/new", None)
    assert {name for name in served.fetched if name.endswith(".safetensors")} == shards


def test_what_cannot_be_served_is_not_downloaded(hub: tuple[Hub, Path]) -> None:
    served, folder = hub
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(Unsupported, match="gptq"):
        load_model("someone/new")
    assert "model.safetensors" not in served.fetched


def test_a_repository_without_safetensors(hub: tuple[Hub, Path]) -> None:
    served, folder = hub
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="no safetensors weights"):
        load_model("someone/new")
    assert "pytorch_model.bin" not in served.fetched


def test_an_id_that_the_hub_does_not_know(hub: tuple[Hub, Path]) -> None:
    with pytest.raises(UnknownModel, match="nobody/nothing"):
        load_model("nobody/nothing")


def test_an_adapter_is_downloaded_without_other_formats(hub: tuple[Hub, Path], lora_writer: Any) -> None:
    served, folder = hub
    engine: Any = load_model("demo", device="cpu", kv_tokens=4096).engine
    lora_writer(folder, AutoModelForCausalLM.from_pretrained(DEMO))
    (folder / "adapter_model.bin").write_bytes(b"another format")
    engine.load_lora("french", "someone/new")
    assert set(served.fetched) == {"adapter_config.json", "adapter_model.safetensors"}
    with pytest.raises(UnknownModel, match="nobody/nothing"):
        engine.load_lora("german", "nobody/nothing")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors"):
        locate_lora(str(folder))
