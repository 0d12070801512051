"""`aios bench memory` on a conversation and a store of its own making."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
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


def test_speed_gives_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    added = speed.adds(40, 10, writers=4)
    assert (added["case"], added["notes"]) == ("add_4_writers", 40)
    assert min(added["adds_per_s"], added["chroma_adds_per_s"], added["sync_us"]) > 0
    assert 0 < added["p50_ms"] <= added["p99_ms"]
    found, reopened = speed.search(40, 4, 10)
    assert (found["case"], reopened["case"]) == ("search_4_namespaces", "reopen_4_namespaces")
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert 0 < found["cpu_p50_ms"] <= found["cpu_p99_ms"]
    assert min(found["adds_per_s"], found["settle_s"], found["rss_mib"]) > 0
    assert min(reopened["reopen_s"], reopened["cpu_s"]) > 0
    assert list(tmp_path.iterdir()) == []


def test_given_vectors_are_unit_and_lie_in_clusters() -> None:
    made = speed.GivenVectors().embed([f"{n} word" for n in range(6000)])
    assert np.linalg.norm(made, axis=1) == pytest.approx(np.ones(6000), abs=1e-5)
    assert len(np.unique(made, axis=0)) > 5990
    near = np.sort(made @ made[0])[-2]
    assert 0.4 < near < 0.95
