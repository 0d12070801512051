"""Vectors that were made lately are at hand."""

from __future__ import annotations

import numpy as np
import pytest

from aios_kernel.memory import HashEmbedder, kept
from aios_kernel.memory.embedding import EmbeddingThread
from aios_kernel.memory.index import Vectors


def test_what_was_used_last_is_kept_and_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_MOST", 3)
    made: list[list[str]] = []

    def make(texts: list[str]) -> Vectors:
        made.append(texts)
        return HashEmbedder().embed(texts)

    vectors = kept.KeptVectors(make)
    assert vectors.at_hand(["a"]) is None
    assert (vectors.of(["a", "b", "a"]) == HashEmbedder().embed(["a", "b", "a"])).all()
    assert vectors.at_hand(["a", "c"]) is None
    found = vectors.at_hand(["a"])
    assert found is not None
    assert (found == HashEmbedder().embed(["a"])).all()
    vectors.of(["c", "d"])
    assert vectors.at_hand(["b"]) is None  # used less lately than a
    assert vectors.at_hand(["a", "d"]) is not None
    assert made == [["a", "b"], ["c", "d"]]
    assert vectors.at_hand([]) is None


def test_long_texts_are_not_looked_up_on_the_callers_thread() -> None:
    vectors = kept.KeptVectors(HashEmbedder().embed)
    vectors.of(["x" * 100_000])
    assert vectors.at_hand(["x" * 100_000]) is None


def test_a_kept_text_does_not_wait_for_the_embedder() -> None:
    thread = EmbeddingThread(HashEmbedder())
    first = thread.submit(["a text"]).result()
    thread.close()  # nobody embeds any more
    again = thread.submit(["a text"])
    assert again.done()
    assert np.array_equal(again.result(), first)
