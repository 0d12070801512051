"""A reranker looks at the best notes once more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from aios_kernel.errors import ConfigError, InternalError
from aios_kernel.memory import CrossEncoderReranker, ExactIndex, HashEmbedder, MemoryManager
from aios_kernel.syscalls import MemoryAdd, MemorySearch


class _Shortest:
    """Likes short texts."""

    candidates = 6

    def __init__(self, lost: int = 0) -> None:
        self.asked: list[int] = []
        self._lost = lost

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        self.asked.append(len(texts))
        return [1 / len(text) for text in texts[self._lost :]]


async def _found(home: Path, reranker: _Shortest | CrossEncoderReranker, k: int) -> list[str]:
    home.mkdir(exist_ok=True)  # noqa: ASYNC240 - a test may block
    memory = MemoryManager(home, HashEmbedder(), lambda model: ExactIndex(), reranker=reranker)
    try:
        for n in range(8):
            await memory.add("u", "agent/a", "a", MemoryAdd(text="tea " * (n + 1)))
        return [note.text for note in (await memory.search("u", "agent/a", MemorySearch(query="tea", k=k))).notes]
    finally:
        await memory.close()


async def test_its_scores_decide_among_its_candidates(tmp_path: Path) -> None:
    reranker = _Shortest()
    assert len(await _found(tmp_path, reranker, 3)) == 3
    assert reranker.asked == [6]
    found = await _found(tmp_path / "more", reranker, 8)
    assert [len(text) for text in found[:6]] == sorted(len(text) for text in found[:6])
    assert len(found) == 8


async def test_a_wrong_number_of_scores_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="5 scores for 6"):
        await _found(tmp_path, _Shortest(lost=1), 3)


async def test_a_missing_model_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no reranker in"):
        await _found(tmp_path, CrossEncoderReranker(tmp_path / "none"), 3)


@pytest.mark.slow
async def test_a_cross_encoder_from_a_folder(tmp_path: Path) -> None:
    """Random weights: what matters is that scores come out, and the same ones each time."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    torch.manual_seed(0)
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "tea"]))
    folder = tmp_path / "model"
    BertTokenizerFast(vocab_file=str(vocabulary)).save_pretrained(folder)
    config = BertConfig(
        vocab_size=6, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    found = await _found(tmp_path / "one", CrossEncoderReranker(folder), 8)
    assert sorted(map(len, found)) == [4 * n for n in range(1, 9)]
    assert found == await _found(tmp_path / "two", CrossEncoderReranker(folder), 8)
