"""`aios bench memory` on a conversation and a store of its own making."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from aios_evals.memory_bench import locomo, speed
from aios_kernel.errors import NotFound
from aios_kernel.memory import HashEmbedder


def _write(folder: Path) -> None:
    turns = [f"we spoke of thing{n}" for n in range(30)]
    session = [{"dia_id": f"D1:{n}", "speaker": "Ann", "text": text} for n, text in enumerate(turns)]
    questions = [
        {"question": "What about thing7?", "evidence": ["D1:7"]},
        {"question": "thing3 or thing20?", "evidence": ["D1:3; D1:20"]},
        {"question": "thing4?", "evidence": ["D1:4", "D1:25"]},
        {"question": "No evidence", "evidence": []},
    ]
    (folder / "locomo").mkdir()
    with gzip.open(folder / "locomo" / "locomo_first5.json.gz", "wt") as file:
        json.dump([{"conversation": {"session_1": session, "session_1_date_time": "x"}, "qa": questions}], file)


def test_recall_counts_the_evidence_found(tmp_path: Path) -> None:
    _write(tmp_path)
    first, total = locomo.recall(locomo.load(tmp_path), HashEmbedder())
    assert (first["case"], total["case"], total["notes"]) == ("locomo_1", "locomo", 30)
    assert total["recall10"] == first["recall10"]
    assert first["recall5"] == pytest.approx((1 + 1 + 0.5) / 3)


def test_missing_data_says_where_it_is_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="LoCoMo"):
        locomo.load(tmp_path)


def test_speed_gives_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = speed.measure(40, 4, 10, 3)
    assert (row["case"], row["notes"]) == ("4_spaces_64_writers", 40)
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert min(row["adds_per_s"], row["chroma_adds_per_s"]) > 0
    assert list(tmp_path.iterdir()) == []
